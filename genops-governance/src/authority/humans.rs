//! Humans named in the configuration, with the names and identities of each.

use crate::approval::alike;
use crate::config::{HumanConfig, Sections};
use crate::settings::Faults;

/// The configured people.
#[derive(Clone, Debug, Default)]
pub(crate) struct Humans {
    /// Names of each human, normalised for comparison.
    names: Vec<Vec<String>>,
    /// Authority must come from a configured human, also for a principal without a grant.
    is_asked: bool,
}

/// Kinds of public keys made by `ssh-keygen`.
const KEYS: [&str; 8] = [
    "ssh-ed25519",
    "sk-ssh-ed25519@openssh.com",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "ssh-rsa",
    "ssh-dss",
];

impl Humans {
    pub(crate) fn compile(sections: &Sections, faults: &mut Faults) -> Self {
        let is_asked = !sections.humans.is_empty() || sections.require_authority;
        let mut humans = Self { names: Vec::new(), is_asked };
        for (index, human) in sections.humans.iter().enumerate() {
            let HumanConfig { name, identity, keys, unix_user } = human;
            let place = Faults::entry("humans", index, name);
            faults.name_is_new(&place, name, |_| false, index);
            for (key, value) in [("name", Some(name)), ("identity", Some(identity))]
                .into_iter()
                .chain([("unix_user", unix_user.as_ref())])
            {
                let Some(value) = value else { continue };
                if key != "name" && value.trim().is_empty() {
                    faults.add(&place, key, "is empty: write what the human is known by");
                } else if humans.names(value).is_some() {
                    let why = format!("is `{value}`, which another human before it is called");
                    faults.add(&place, key, &why);
                }
                if sections.principals.iter().any(|it| alike(&it.name) == alike(value)) {
                    let why =
                        format!("is `{value}`, and a principal is called that: none is human");
                    faults.add(&place, key, &why);
                }
            }
            for key in keys.iter().filter(|it| !is_public_key(it)) {
                let start: String = key.chars().take(16).collect();
                let why = format!(
                    "holds `{start}..`, which is no public key such as `ssh-ed25519 AAAA..`"
                );
                faults.add(&place, "keys", &why);
            }
            let all = [Some(name), Some(identity), unix_user.as_ref()];
            humans.names.push(all.into_iter().flatten().map(|it| alike(it)).collect());
        }
        humans
    }

    /// Returns all names of the human called `name`; `None`: nobody has the name.
    pub(crate) fn names(&self, name: &str) -> Option<&[String]> {
        let name = alike(name);
        let found = self.names.iter().find(|it| it.contains(&name));
        found.filter(|_| !name.is_empty()).map(Vec::as_slice)
    }

    /// Returns true if a principal without a grant must be delegated to by a configured human.
    pub(crate) fn are_asked_for(&self) -> bool {
        self.is_asked
    }

    /// Adds a fault, with the remedy, if no human has the name.
    pub(crate) fn miss(&self, place: &str, key: &str, name: &str, faults: &mut Faults) {
        if self.names(name).is_none() {
            let why = format!(
                "names `{name}`, who is none of `humans`: add them there with `name` and `identity`, or \
                 name the human that this authority comes from"
            );
            faults.add(place, key, &why);
        }
    }
}

fn is_public_key(text: &str) -> bool {
    let mut words = text.split_whitespace();
    let kind = words.next().unwrap_or_default();
    let body = words.next().unwrap_or_default();
    let is_base64 = |it: char| it.is_ascii_alphanumeric() || "+/=".contains(it);
    KEYS.contains(&kind) && body.starts_with("AAAA") && body.chars().all(is_base64)
}
