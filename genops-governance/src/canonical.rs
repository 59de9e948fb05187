//! Configuration as bytes for hashes in evidence, stable over releases.

use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// Adds a value to a hash: the length of the JSON in bytes, as eight bytes in network order, and
/// the JSON. The JSON keys are the configuration's keys, in the order of the fields.
pub(crate) fn hash(hash: &mut Sha256, value: &impl Serialize) {
    let json = serde_json::to_vec(value).expect("plain structs with string keys");
    hash.update((json.len() as u64).to_be_bytes());
    hash.update(json);
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::config::PriceConfig;
    use crate::hex::hex;

    #[test]
    fn a_price_has_the_hash_that_it_had() {
        let price = PriceConfig {
            model: "own-*".to_owned(),
            input_per_million: Some(0.15),
            ..PriceConfig::default()
        };
        let mut hasher = Sha256::new();
        hash(&mut hasher, &price);
        expect!["eff67ac4951d37478c56fec680e79d08f6469e587a63876f7fd9d872279d0ed1"]
            .assert_eq(&hex(&hasher.finalize()));
    }

    #[test]
    fn where_a_value_ends_is_hashed_too() {
        let of = |values: &[&str]| {
            let mut hasher = Sha256::new();
            for value in values {
                hash(&mut hasher, value);
            }
            hex(&hasher.finalize())
        };
        assert_ne!(of(&["a", "b"]), of(&["a\",\"b"]));
        assert_ne!(of(&["a", "b"]), of(&["ab"]));
    }
}
