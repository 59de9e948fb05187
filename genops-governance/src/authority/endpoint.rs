//! Endpoints covered by a grant: a method, a host and a path, each a pattern or absent.

use genops_protocols::Call;

use crate::glob;

/// `[METHOD ]HOST[:PORT][/PATH]`, or `[METHOD ]/PATH` at any host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Endpoint {
    method: Option<String>,
    /// In lower case.
    host: Option<String>,
    port: Option<u16>,
    path: Option<String>,
}

impl Endpoint {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("holds `{text}`, which is no endpoint such as `POST api.openai.com/v1/chat/*`")
        };
        let mut words = text.split_whitespace();
        let (method, place) = match (words.next(), words.next(), words.next()) {
            (Some(place), None, None) => (None, place),
            (Some(method), Some(place), None) => (Some(method), place),
            _ => return Err(wrong()),
        };
        let is_method = |it: &str| it.bytes().all(|byte| byte.is_ascii_uppercase());
        if place.contains(['?', '#']) || method.is_some_and(|it| !is_method(it)) {
            return Err(wrong());
        }
        let (host, path) = match place.find('/') {
            Some(at) => place.split_at(at),
            None => (place, ""),
        };
        let (host, port) = match host.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().map_err(|_| wrong())?)),
            None => (host, None),
        };
        if host.is_empty() && (port.is_some() || path.is_empty()) || host.contains(':') {
            return Err(wrong());
        }
        let said = |it: &str| Some(it.to_owned()).filter(|it| !it.is_empty());
        let host = said(&host.to_lowercase());
        Ok(Self { method: method.map(str::to_owned), host, port, path: said(path) })
    }

    /// Returns true if the endpoint covers a call. An unknown part of the call is not covered.
    pub(crate) fn covers(&self, call: &Call) -> bool {
        let Self { method, host, port, path } = self;
        let server = || call.server_address.as_deref().map(str::to_lowercase);
        (method.is_none() || *method == call.method)
            && (port.is_none() || *port == call.server_port)
            && host.as_ref().is_none_or(|like| server().is_some_and(|it| glob::matches(like, &it)))
            && path.as_ref().is_none_or(|like| {
                call.path.as_ref().is_some_and(|it| is_plain(it) && glob::matches(like, it))
            })
    }

    /// Returns true if `other` covers everything covered by `self`.
    pub(crate) fn is_within(&self, other: &Self) -> bool {
        let within = |own: &Option<String>, other: &Option<String>| {
            other.as_ref().is_none_or(|like| own.as_ref().is_some_and(|it| glob::matches(like, it)))
        };
        (other.method.is_none() || other.method == self.method)
            && (other.port.is_none() || other.port == self.port)
            && within(&self.host, &other.host)
            && within(&self.path, &other.path)
    }
}

/// Returns true if a server can't take the path for another path than a pattern does.
fn is_plain(path: &str) -> bool {
    let folded = path.to_ascii_lowercase();
    let segments = path.split('/').skip(1);
    let odd = segments.clone().any(|it| it == "." || it == "..") || path.contains("//");
    !odd && !path.contains('\\') && !["%2e", "%2f", "%5c"].iter().any(|it| folded.contains(it))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(method: &str, host: &str, port: u16, path: &str) -> Call {
        Call {
            method: Some(method.to_owned()),
            server_address: Some(host.to_owned()),
            server_port: Some(port),
            path: Some(path.to_owned()),
            ..Call::default()
        }
    }

    #[test]
    fn an_endpoint_covers_what_it_says_and_nothing_that_is_not_known() {
        let post = |path: &str| call("POST", "Api.Example.com", 443, path);
        for (text, call, expected) in vec![
            ("api.example.com", post("/v1/x"), true),
            ("API.example.com:443", post("/v1/x"), true),
            ("api.example.com:8443", post("/v1/x"), false),
            ("*.example.com/v1/*", post("/v1/x"), true),
            ("*.example.com/v1/*", post("/v2/x"), false),
            ("/v1/chat/completions", post("/v1/chat/completions"), true),
            ("GET /v1/*", post("/v1/x"), false),
            ("POST /v1/*", post("/v1/x"), true),
            ("POST /v1/files/*", post("/v1/files/../chat"), false),
            ("POST /v1/files/*", post("/v1/files/%2E%2e/chat"), false),
            ("POST /v1/files/*", post("/v1/files//chat"), false),
            ("api.example.com", Call::default(), false),
            ("/v1/*", Call::default(), false),
        ] {
            assert_eq!(
                Endpoint::parse(text).expect("an endpoint").covers(&call),
                expected,
                "{text} {call:?}"
            );
        }
        for text in ["", "post /v1", "POST a b", "h:port/x", ":443", "/v1?x=1", "a:1:2"] {
            assert!(Endpoint::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_within_another_covers_nothing_more() {
        let of = |text: &str| Endpoint::parse(text).expect("an endpoint");
        for (inner, outer, expected) in [
            ("POST a.example/v1/x", "a.example", true),
            ("a.example/v1/*", "*.example/v1/*", true),
            ("*.example/v1/x", "a.example", false),
            ("/v1/x", "a.example/v1/x", false),
            ("a.example", "POST a.example", false),
            ("a.example:1", "a.example", true),
            ("a.example", "a.example:1", false),
        ] {
            assert_eq!(of(inner).is_within(&of(outer)), expected, "{inner} {outer}");
        }
    }
}
