//! Usage details of a reconciliation record, beside the accounts: the source of reports.

use genops_protocols::Call;

use crate::awu::Basis;

/// Returns pairs of name and text: basis of the amounts, tokens counted by the provider, nano-USD
/// if a price is known or assumed, and the answering model if another was requested.
pub(super) fn detail(
    call: &Call,
    basis: Basis,
    nano_usd: Option<i64>,
    price_assumed: bool,
) -> Vec<(&'static str, String)> {
    let usage = &call.usage;
    let other = call.response_model.as_ref().filter(|it| call.request_model.as_ref() != Some(it));
    let number = |it: u64| it.to_string();
    let mut detail = vec![("basis", basis.as_str().to_owned())];
    detail.extend(usage.input_tokens.map(|it| ("in", number(it))));
    detail.extend(usage.output_tokens.map(|it| ("out", number(it))));
    detail.extend(usage.cache_read_input_tokens.map(|it| ("cached", number(it))));
    detail.extend(nano_usd.map(|it| ("cost", it.to_string())));
    detail.extend(price_assumed.then(|| ("price", "assumed".to_owned())));
    detail.extend(other.map(|it| ("answered", it.clone())));
    detail
}

#[cfg(test)]
mod tests {
    use genops_protocols::Usage;

    use super::*;

    #[test]
    fn what_is_not_known_is_not_said() {
        let model = |name: &str| Some(name.to_owned());
        let blank =
            Call { request_model: model("m"), response_model: model("m"), ..Call::default() };
        let said = |it: &[(&str, String)]| {
            it.iter().map(|(key, value)| format!("{key}={value} ")).collect::<Vec<_>>().concat()
        };
        assert_eq!(said(&detail(&blank, Basis::Reserved, None, false)), "basis=reserved ");
        let usage = Usage {
            input_tokens: Some(31),
            output_tokens: Some(0),
            cache_read_input_tokens: Some(12),
            ..Usage::default()
        };
        let known = Call { usage, response_model: model("m-2"), ..blank };
        let expected = "basis=reported in=31 out=0 cached=12 cost=77 price=assumed answered=m-2 ";
        assert_eq!(said(&detail(&known, Basis::Reported, Some(77), true)), expected);
    }
}
