#![allow(clippy::unwrap_used, reason = "a test ends where it does not hold")]

use base64::Engine as _;
use expect_test::{Expect, expect};

use super::*;

/// Compares the refusal of `yaml`, or the warnings of the accepted configuration.
#[track_caller]
fn check(yaml: &str, expected: &Expect) {
    let rendered = match Config::parse(Path::new("agent.yaml"), yaml) {
        Ok(config) => {
            let accepted = "accepted".to_owned();
            let warnings = config.warnings.iter().map(|warning| format!("warning: {warning}"));
            std::iter::once(accepted).chain(warnings).collect::<Vec<_>>().join("\n")
        }
        Err(error) => error.to_string(),
    };
    expected.assert_eq(&rendered);
}

/// The configuration of the interfaces' page, with a directory for the Cedar files.
fn published(policies: &Path) -> String {
    format!(
        r#"environment: production
mode: enforce                 # observe | enforce
on_timeout: open
hold_deadline_ms: 250
telemetry:
  otlp: {{endpoint: "http://127.0.0.1:4318", protocol: http/protobuf, headers: {{}}}}
  metrics_listen: "127.0.0.1:9464"
evidence: {{directory: /var/lib/genops/evidence, content: none}}
providers:
  - {{host: llm.internal, port: 8000, dialect: openai}}
principals:
  - name: refund-bot
    match: {{user: svc-refund, exe: "/usr/bin/python3*", systemd_unit: "refund*.service", namespace: payments, service_account: refund}}
    team: payments
    project: refunds
    cost_center: cc-42
    delegated_by: alice@example.com
    expires: 2027-01-01T00:00:00Z
budgets:
  - {{name: payments-daily, team: payments, unit: USD, limit: 50.0, period: day}}
rate_limits:
  - {{name: refund-rpm, principal: refund-bot, requests: 60, per: minute}}
policies:
  - name: refund-models
    principal: refund-bot
    allowed_providers: [openai, anthropic]
    allowed_models: ["gpt-4o-mini*", "claude-*"]
    denied_models: ["*-pro"]
    allowed_regions: ["eu-*"]
    denied_content: ["(?i)internal use only"]
    max_cost: 0.50
    enforcement: block
policy_files: [{}]
"#,
        policies.display()
    )
}

#[test]
fn the_published_example_is_accepted() {
    let policies = Directory::new("published");
    let config = Config::parse(Path::new("agent.yaml"), &published(policies.path())).unwrap();
    assert_eq!(config.mode, Mode::Enforce);
    assert_eq!(config.hold_deadline, Duration::from_millis(250));
    assert_eq!(config.warnings, Vec::<String>::new());
    assert_eq!(config.sections().principals.len(), 1);
    assert_eq!(config.telemetry.otlp.unwrap().endpoint, "http://127.0.0.1:4318");
    assert!(
        config
            .hosts
            .host_patterns()
            .any(|pattern| pattern.suffix == "llm.internal" && pattern.port == Some(8000))
    );
}

#[test]
fn without_a_file_everything_has_its_documented_default() {
    let Config { mode, on_timeout, hold_deadline, telemetry, evidence, capture, hash, .. } =
        Config::default();
    expect![[r#"
        (
            Observe,
            Open,
            250ms,
            Telemetry {
                otlp: None,
                metrics_listen: None,
                socket: Some(
                    "/run/genops/agent.sock",
                ),
                user_socket: Some(
                    "/run/genops/user.sock",
                ),
            },
            Evidence {
                directory: "/var/lib/genops/evidence",
                content: None,
                on_failure: Block,
                origin: None,
                key_file: None,
                durable_before_release: true,
                segment_bytes: 16777216,
                limits: Limits {
                    age: None,
                    bytes: None,
                },
                witnesses: [],
                ship: None,
            },
            Capture {
                message_limit_bytes: 4194304,
                ring_bytes: 8388608,
                nice: -10,
            },
        )
    "#]]
    .assert_debug_eq(&(mode, on_timeout, hold_deadline, telemetry, evidence, capture));
    let of_nothing: [u8; 32] = Sha256::digest(b"").into();
    assert_eq!(hash, of_nothing);
}

#[test]
fn an_empty_file_and_empty_sections_are_as_if_absent() {
    check("", &expect!["accepted"]);
    check("# nothing\n", &expect!["accepted"]);
    check("principals:\nbudgets: []\ntelemetry:\npolicy_files:\n", &expect!["accepted"]);
}

#[test]
fn an_unknown_key_names_the_nearest_known_one() {
    check(
        "mdoe: enforce\n",
        &expect!["agent.yaml:1: `mdoe` is not a key here; did you mean `mode`?"],
    );
    check(
        "mode: observe\ntelemetry:\n  otlp:\n    endpoint: http://x\n    protcol: grpc\n",
        &expect!["agent.yaml:5: `protcol` is not a key here; did you mean `protocol`?"],
    );
    check(
        "principals:\n  - name: a\n    macth: {user: x}\n",
        &expect!["agent.yaml:3: `macth` is not a key here; did you mean `match`?"],
    );
    check(
        "policies:\n  - {name: a, allowed_modles: [x]}\n",
        &expect![
            "agent.yaml:2: `allowed_modles` is not a key here; did you mean `allowed_models`?"
        ],
    );
    check(
        "evidence: {dir: /x}\n",
        &expect!["agent.yaml:1: `dir` is not a key here; did you mean `directory`?"],
    );
    check(
        "capture: {zzzz: 1}\n",
        &expect![
            "agent.yaml:1: `zzzz` is not a key here; the nearest is `nice`, known are message_limit_bytes, ring_bytes, nice"
        ],
    );
}

#[test]
fn a_wrong_type_names_its_key_and_what_was_expected() {
    check(
        "hold_deadline_ms: soon\n",
        &expect!["agent.yaml:1: `hold_deadline_ms`: expected a whole number, 0 or more"],
    );
    check(
        "hold_deadline_ms: -1\n",
        &expect!["agent.yaml:1: `hold_deadline_ms`: expected a whole number, 0 or more"],
    );
    check(
        "budgets:\n  - name: b\n    limit: lots\n",
        &expect!["agent.yaml:3: `limit`: expected a number"],
    );
    check(
        "principals: 5\n",
        &expect![
            "agent.yaml:1: `principals`: expected a list: `- ..` on lines of their own, or [..]"
        ],
    );
    check(
        "principals:\n  name: a\n",
        &expect![
            "agent.yaml:2: `principals`: expected a list: `- ..` on lines of their own, or [..]"
        ],
    );
    check(
        "telemetry: yes\n",
        &expect!["agent.yaml:1: `telemetry`: expected keys and values: `key: value`"],
    );
    check("default_deny: 7\n", &expect!["agent.yaml:1: `default_deny`: expected true or false"]);
    check("- a\n", &expect!["agent.yaml:1: expected keys and values: `key: value`"]);
}

#[test]
fn a_word_that_is_no_choice_names_the_choices() {
    check(
        "mode: enforced\n",
        &expect![
            "agent.yaml:1: `mode`: `enforced` is not one of observe, enforce; did you mean `enforce`?"
        ],
    );
    check(
        "telemetry: {otlp: {endpoint: \"http://x\", protocol: http/json}}\n",
        &expect![
            "agent.yaml:1: `protocol`: `http/json` is not one of http/protobuf, grpc; did you mean `http/protobuf`?"
        ],
    );
    check(
        "policies:\n  - {name: p, enforcement: stop}\n",
        &expect![
            "agent.yaml:2: `enforcement`: `stop` is not one of block, warn; did you mean `block`?"
        ],
    );
    check(
        "policies:\n  - {name: p, signal: hup}\n",
        &expect!["agent.yaml:2: `signal`: `hup` is not one of term, kill; did you mean `term`?"],
    );
    check(
        "policies:\n  - {name: p, denied_models: [\"*\"], enforcement: warn, signal: term}\n",
        &expect![
            "agent.yaml:2: policies[0] (p): `signal` goes with `enforcement: block` only: a warning ends nothing"
        ],
    );
}

#[test]
fn a_value_out_of_its_bounds_names_the_bounds() {
    check(
        "hold_deadline_ms: 0\n",
        &expect!["agent.yaml:1: `hold_deadline_ms`: 0 is not between 1 and 60000"],
    );
    check(
        "capture:\n  nice: -21\n",
        &expect!["agent.yaml:2: `capture.nice`: -21 is not between -20 and 19"],
    );
    check(
        "capture:\n  ring_bytes: 100000\n",
        &expect![
            "agent.yaml:2: `capture.ring_bytes`: 100000 is not a power of two, such as 8388608"
        ],
    );
    check(
        "telemetry:\n  metrics_listen: localhost\n",
        &expect![
            "agent.yaml:2: `telemetry.metrics_listen`: `localhost` is not an address and a port, such as 127.0.0.1:9464"
        ],
    );
    check(
        "telemetry:\n  otlp:\n    endpoint: collector:4317\n",
        &expect![
            "agent.yaml:3: `telemetry.otlp.endpoint`: `collector:4317` is not a URL such as http://127.0.0.1:4318"
        ],
    );
}

#[test]
fn what_is_missing_twice_or_unfinished_is_named() {
    check(
        "mode: observe\nmode: enforce\n",
        &expect!["agent.yaml:2: `mode` stands here twice; remove one"],
    );
    check(
        "telemetry:\n  otlp: {protocol: grpc}\n",
        &expect!["agent.yaml:2: `endpoint` is missing here; add `endpoint: ..`"],
    );
    check(
        "budgets:\n  - {limit: 5}\n",
        &expect!["agent.yaml:2: `name` is missing here; add `name: ..`"],
    );
    check(
        "---\nmode: observe\n---\nmode: enforce\n",
        &expect![
            "agent.yaml:4: a second document begins here; the file must hold one, remove the `---`"
        ],
    );
    check("principals: [\n", &expect!["agent.yaml:1: unclosed bracket '['"]);
    check(
        "mode:\n\t- x\n",
        &expect!["agent.yaml:2: tabs disallowed within this context (block indentation)"],
    );
}

#[test]
fn secrets_are_referred_to_and_never_shown() {
    let yaml = "telemetry:\n  otlp:\n    endpoint: https://collector.example\n    headers:\n      authorization: Bearer hunter2\n      x-scope: tenant\n";
    check(
        yaml,
        &expect![
            "accepted\nwarning: telemetry.otlp.headers: `authorization` stands in the file itself; move it to `headers_file` or write ${NAME_OF_A_VARIABLE}"
        ],
    );
    let config = Config::parse(Path::new("x"), yaml).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    check(
        "telemetry:\n  otlp:\n    endpoint: http://10.0.0.1:4318\n    headers: {x-api-key: \"${GENOPS_NO_SUCH_VARIABLE}\"}\n",
        &expect![
            "agent.yaml:4: `telemetry.otlp.headers.x-api-key`: the environment variable `GENOPS_NO_SUCH_VARIABLE` is not set"
        ],
    );
    check(
        "telemetry:\n  otlp: {endpoint: \"http://10.0.0.1:4318\", headers: {x-api-key: \"${PATH}\"}}\n",
        &expect![
            "accepted\nwarning: telemetry.otlp: headers go to http://10.0.0.1:4318 unencrypted; use https://"
        ],
    );
    check(
        "telemetry:\n  otlp: {endpoint: \"http://x\", headers: {\"a b\": c}}\n",
        &expect!["agent.yaml:2: header `a b`: the name may have letters, digits, `-`, `_` and `.`"],
    );
}

#[test]
fn headers_come_from_a_file() {
    let directory = Directory::new("headers");
    let yaml = "telemetry:\n  otlp: {endpoint: \"https://x\", headers_file: secret}\n";
    let config = directory.path().join("agent.yaml");
    std::fs::write(directory.path().join("secret"), "# key\nAuthorization: Bearer hunter2\n\n")
        .unwrap();
    let settled = Config::parse(&config, yaml).unwrap().telemetry.otlp.unwrap();
    let headers: Vec<_> = settled.headers.iter().collect();
    assert_eq!(headers, [("authorization", "Bearer hunter2")]);
    std::fs::write(directory.path().join("secret"), "hunter2\n").unwrap();
    let refusal = Config::parse(&config, yaml).unwrap_err().to_string();
    assert!(refusal.ends_with("secret:1: expected `Name: value`"), "{refusal}");
    assert!(!refusal.contains("hunter2"));
}

#[test]
fn a_policy_file_that_is_not_there_is_unreadable_and_not_invalid() {
    let refusal =
        Config::parse(Path::new("/etc/a.yaml"), "policy_files: [nowhere.cedar]\n").unwrap_err();
    assert!(matches!(refusal, LoadError::Unreadable { .. }), "{refusal}");
    expect!["/etc/nowhere.cedar: cannot be read: No such file or directory (os error 2)"]
        .assert_eq(&refusal.to_string());
}

#[test]
fn the_hash_covers_the_cedar_files() {
    let policies = Directory::new("hash");
    let yaml = format!("policy_files: [{}]\n", policies.path().display());
    let before = Config::parse(Path::new("x"), &yaml).unwrap().hash;
    std::fs::write(policies.path().join("readme.txt"), "not a policy").unwrap();
    assert_eq!(Config::parse(Path::new("x"), &yaml).unwrap().hash, before);
    std::fs::write(policies.path().join("a.cedar"), "").unwrap();
    assert_ne!(Config::parse(Path::new("x"), &yaml).unwrap().hash, before);
}

#[test]
fn what_is_valid_and_odd_is_a_warning() {
    check(
        "mode: enforce\n",
        &expect![
            "accepted\nwarning: mode is enforce, but no policy, budget or rate limit says what to refuse"
        ],
    );
    check(
        "on_timeout: closed\n",
        &expect!["accepted\nwarning: on_timeout: closed has no effect while mode is observe"],
    );
}

#[test]
fn what_decides_comes_to_the_same_from_what_evidence_keeps() {
    let policies = Directory::new("recipe");
    std::fs::write(
        policies.path().join("a.cedar"),
        "@id(\"a\") @reason_code(\"POLICY_DENY_MODEL\") @reason(\"no\")\n\
         forbid (principal, action, resource) when { context.stream };\n",
    )
    .unwrap();
    let config = Config::parse(Path::new("agent.yaml"), &published(policies.path())).unwrap();
    let recipe = config.recipe.clone().unwrap();
    let (settings, agent) = recipe::read(&recipe).unwrap();
    assert_eq!(agent, env!("CARGO_PKG_VERSION"));
    assert_eq!(settings.policy_hash(), config.settings().policy_hash());
    assert_eq!(settings.price_hash(), config.settings().price_hash());
    let recipe = String::from_utf8(recipe).unwrap();
    assert!(!recipe.contains("4318") && recipe.contains("context.stream"), "{recipe}");
    assert!(Config::default().recipe.is_some());
    // YAML 1.1 would not read these values as text.
    let odd = "principals: [{name: yes, match: {user: 0777}, team: 1e3, project: ~x}]\n";
    let odd = Config::parse(Path::new("x"), odd).unwrap();
    assert!(odd.recipe.is_some_and(|it| recipe::read(&it).is_ok()));
}

#[test]
fn copies_go_to_a_bucket_or_a_directory() {
    for (ship, expected) in [
        ("{to: \"s3://bucket/a/b\", region: eu-central-1}", "accepted"),
        ("{to: /mnt/copy, every_s: 60}", "accepted"),
        (
            "{to: copy}",
            "`evidence.ship`: `to`: `copy` is neither s3://bucket/prefix nor an absolute path",
        ),
        (
            "{to: \"s3:///a\"}",
            "`evidence.ship`: `to`: `s3:///a` names no bucket, as s3://bucket/prefix does",
        ),
        (
            "{to: /mnt, endpoint: \"http://x\"}",
            "`evidence.ship`: `endpoint`: `http://x` goes with s3://bucket/prefix only",
        ),
        ("{to: \"s3://b\", endpoint: x}", "`evidence.ship`: `endpoint`: `x` is not a URL"),
        ("{to: \"s3://b\", every_s: 0}", "`evidence.ship.every_s`: 0 is not between 1 and 86400"),
    ] {
        let yaml = format!("evidence:\n  ship: {ship}\n");
        let settled = Config::parse(Path::new("x"), &yaml).map(|_| "accepted".to_owned());
        let said = settled.unwrap_or_else(|error| error.to_string());
        let said = said.trim_start_matches("x:2: ");
        assert_eq!(said, expected, "{ship}");
    }
}

#[test]
fn a_witness_is_named_by_address_and_key() {
    check(
        "evidence:\n  witnesses:\n    - {url: witness.example, key: x}\n",
        &expect![
            "agent.yaml:3: `evidence.witnesses`: `url`: `witness.example` is not a URL such as https://witness.example.com/"
        ],
    );
    check(
        "evidence:\n  witnesses:\n    - {url: \"https://witness.example\", key: nowhere.vkey}\n",
        &expect![
            "agent.yaml:3: `evidence.witnesses`: `key`: `nowhere.vkey` is neither a verifier key nor a file with one"
        ],
    );
}

/// A temporary directory of a test, removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("genops-config-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

#[test]
fn what_governance_refuses_has_its_line_too() {
    check(
        "budgets:\n  - {name: a, limit: 5}\n  # a comment\n  - name: a\n    limit: 7\n",
        &expect!["agent.yaml:4: budgets[1] (a): `name` is used by an entry before it"],
    );
    check(
        "budgets:\n  - name: b\n    unit: USD\n    limit: -1\n",
        &expect!["agent.yaml:4: budgets[0] (b): `limit` -1 is below zero"],
    );
    check(
        "policies:\n  - name: p\n    denied_content:\n      - \"(\"\n",
        &expect![
            "agent.yaml:3: policies[0] (p): `denied_content` can't be compiled: regex parse error:     (     ^ error: unclosed group"
        ],
    );
    check(
        "principals:\n  - name: a\n    match: {user: x}\n    expires: tomorrow\n  - name: b\n",
        &expect![[r"
            agent.yaml:4: principals[0] (a): `expires` `tomorrow` is not a moment like 2027-01-01T00:00:00Z
            agent.yaml:5: principals[1] (b): `match` names nothing, so no process would match"]],
    );
    check(
        "grants:\n  - {name: a, parent: b}\n  - {name: b, parent: a}\n",
        &expect![[r"
            agent.yaml:2: grants[0] (a): `parent` leads back to the grant itself
            agent.yaml:3: grants[1] (b): `parent` leads back to the grant itself"]],
    );
}

#[test]
fn an_unknown_dialect_names_the_known_ones() {
    let yaml = "providers:\n  - {host: llm, dialect: klingon}\n";
    let refusal = Config::parse(Path::new("agent.yaml"), yaml).unwrap_err().to_string();
    assert!(refusal.starts_with("agent.yaml:2: providers[0] (llm): "), "{refusal}");
    assert!(refusal.contains("unknown dialect `klingon`"), "{refusal}");
    assert!(refusal.contains("known are openai, "), "{refusal}");
}

#[test]
fn a_cedar_file_is_refused_with_its_own_name_and_line() {
    let policies = Directory::new("cedar");
    let file = policies.path().join("a.cedar");
    std::fs::write(
        &file,
        "@id(\"all\")\npermit (principal, action, resource);\n@id(\"x\") forbid (principal\n",
    )
    .unwrap();
    let yaml = format!("policy_files: [{}]\n", file.display());
    let refusal = Config::parse(Path::new("agent.yaml"), &yaml).unwrap_err().to_string();
    let refusal = refusal.replace(&policies.path().display().to_string(), "DIR");
    expect!["DIR/a.cedar:3:27: unexpected end of input"].assert_eq(&refusal);
}

/// Price data of one model, in the form of the `genai-prices` project.
fn price_data(input: f64) -> String {
    format!(
        r#"[{{"id":"openai","models":[{{"id":"gpt-9-mega","match":{{"starts_with":"gpt-9-mega"}},
            "context_window":400000,"prices":{{"input_mtok":{input},"output_mtok":8}}}}]}}]"#
    )
}

#[test]
fn a_price_file_counts_by_its_hash_in_the_configuration() {
    let directory = Directory::new("prices");
    let file = directory.path().join("prices.json");
    std::fs::write(&file, price_data(2.0)).unwrap();
    let config = directory.path().join("agent.yaml");
    let hash = unhexed(&Sha256::digest(price_data(2.0)));
    let yaml = format!("prices: {{file: prices.json, sha256: {hash}}}\n");
    let settled = Config::parse(&config, &yaml).unwrap();
    assert!(settled.recipe.is_some());
    let listed = settled.settings().prices().list(Some("openai"), "gpt-9-mega-2027", 1);
    assert_eq!(listed.iter().map(|it| it.from).collect::<Vec<_>>(), ["prices.file"]);
    // The recipe alone gives the prices in force, without the file.
    let (again, _) = recipe::read(settled.recipe.as_ref().unwrap()).unwrap();
    assert_eq!(again.price_hash(), settled.settings().price_hash());
    std::fs::write(&file, price_data(0.1)).unwrap();
    let refusal = Config::parse(&config, &yaml).unwrap_err().to_string();
    assert!(refusal.ends_with("and not `prices.sha256`"), "{refusal}");
}

#[test]
fn a_price_file_counts_by_a_signature_of_the_key_in_the_configuration() {
    let directory = Directory::new("signed-prices");
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    // RFC 8032, section 7.1, test 2: a key and its signature of a single byte, no price data.
    let key = unhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
    let signature = unhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
         085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    );
    let put = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    put("prices.json", "r");
    put("prices.json.sig", &base64(&signature));
    let config = directory.path().join("agent.yaml");
    let refusal = |key: &str| {
        let yaml = format!("prices: {{file: prices.json, public_key: {key}}}\n");
        Config::parse(&config, &yaml).unwrap_err().to_string()
    };
    let said = refusal(&base64(&key));
    assert!(said.contains("prices.json is not JSON"), "{said}");
    let spki = [unhex("302a300506032b6570032100"), key.clone()].concat();
    assert_eq!(refusal(&base64(&spki)), said);
    put("prices.json", &price_data(0.1));
    let said = refusal(&base64(&key));
    assert!(said.ends_with("is no signature of it by `prices.public_key`"), "{said}");
    assert!(refusal("abc").contains("no Ed25519 key"));
}

fn unhex(text: &str) -> Vec<u8> {
    let pair = |it: &[u8]| u8::from_str_radix(std::str::from_utf8(it).unwrap(), 16).unwrap();
    text.as_bytes().chunks(2).map(pair).collect()
}

fn unhexed(bytes: &[u8]) -> String {
    let pair = |byte: &u8| format!("{byte:02x}");
    bytes.iter().map(pair).collect::<Vec<_>>().concat()
}

#[test]
fn nothing_vouches_for_a_price_file_but_the_configuration() {
    check(
        "prices: {file: p.json}\n",
        &expect![
            "agent.yaml: `prices.file` needs `prices.sha256`, or `prices.public_key` of its signature"
        ],
    );
    check(
        "prices: {sha256: ab}\n",
        &expect!["agent.yaml: `prices.sha256` vouches for no `prices.file`"],
    );
}

#[test]
fn who_is_not_known_to_be_a_human_is_left_open_until_somebody_is() {
    let of = |more: &str| {
        let yaml = format!(
            "{more}principals:\n  - name: nightly\n    match: {{user: cron}}\n    delegated_by: some script\n"
        );
        match Config::parse(Path::new("agent.yaml"), &yaml) {
            Ok(config) => config.left_open,
            Err(refusal) => vec![refusal.to_string()],
        }
    };
    let open =
        "principal `nightly`: nothing says that `some script` is a human; name them under `humans`";
    assert_eq!(of(""), ["mode is observe: nothing is stopped", open]);
    assert_eq!(of("mode: enforce\n").first().map(String::as_str), Some(open));
    let said = "principals[0] (nightly): `delegated_by` names `some script`, who is none of `humans`: add them \
                there with `name` and `identity`, or name the human that this authority comes from";
    assert_eq!(of("require_authority: true\n"), [format!("agent.yaml:5: {said}")]);
    let humans = "humans:\n  - {name: Kim, identity: kim@example.org}\n";
    assert_eq!(of(humans), [format!("agent.yaml:6: {said}")]);
}

#[test]
fn where_authority_is_required_and_nobody_has_any_a_warning_says_so() {
    check(
        "require_authority: true\n",
        &expect![
            "accepted\nwarning: require_authority is true, and no principal has a `grant`: every request is refused; give `principals[].grant` the name of one of `grants`"
        ],
    );
}

#[test]
fn what_a_grant_can_never_give_is_refused_by_key_and_line() {
    let top = "humans: [{name: kim, identity: kim@example.org}]\ngrants:\n  - name: up\n    delegated_by: kim\n";
    check(
        &format!(
            "{top}    scope: {{models: [\"gpt-4o*\"]}}\n    budget: {{limit: 5}}\n  - name: down\n    parent: up\n    scope:\n      models: [o3]\n    budget:\n      limit: 6\n"
        ),
        &expect![[r"
            agent.yaml:10: grants[1] (down): `scope.models` names `o3`, and `up` above it covers only gpt-4o*; take it out, or add it there
            agent.yaml:12: grants[1] (down): `budget.limit` is 6 USD, and `up` above it has 5; make it no more, or raise that"]],
    );
    check(
        &format!("{top}    revoked: true\n  - {{name: down, parent: up}}\n"),
        &expect![[r"
            accepted
            warning: grant `down` hangs below `up`, which is revoked: nothing runs under it"]],
    );
}
