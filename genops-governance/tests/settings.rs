//! Invalid configurations: each fault a sentence with section, entry and key, or file, line and
//! column.

#![expect(clippy::unwrap_used, reason = "tests fail by panic")]
#![expect(clippy::needless_raw_string_hashes, reason = "as the snapshots are written")]

use expect_test::{Expect, expect};
use genops_governance::{PolicyText, Sections, Settings};
use serde_json::{Value, json};

/// Sections from JSON: the same types as the YAML file's.
fn sections(json: Value) -> Sections {
    let mut sections = Sections::default();
    let Value::Object(map) = json else { panic!("an object") };
    for (name, value) in map {
        match name.as_str() {
            "principals" => sections.principals = serde_json::from_value(value).unwrap(),
            "require_authority" => sections.require_authority = value == true,
            "humans" => sections.humans = serde_json::from_value(value).unwrap(),
            "grants" => sections.grants = serde_json::from_value(value).unwrap(),
            "budgets" => sections.budgets = serde_json::from_value(value).unwrap(),
            "rate_limits" => sections.rate_limits = serde_json::from_value(value).unwrap(),
            "policies" => sections.policies = serde_json::from_value(value).unwrap(),
            "sla" => sections.sla = serde_json::from_value(value).unwrap(),
            "prices" => sections.prices = serde_json::from_value(value).unwrap(),
            "providers" => sections.providers = serde_json::from_value(value).unwrap(),
            other => panic!("{other}"),
        }
    }
    sections
}

#[track_caller]
fn check(json: Value, expected: &Expect) {
    let error = Settings::compile(&sections(json)).unwrap_err();
    expected.assert_eq(&error.to_string());
}

#[track_caller]
fn check_cedar(text: &str, expected: &Expect) {
    let file = PolicyText { name: "rules.cedar".to_owned(), text: text.to_owned() };
    let sections = Sections { policy_files: vec![file], ..Sections::default() };
    let said = match Settings::compile(&sections) {
        Ok(settings) => format!("accepted: {} policies", settings.policy_count()),
        Err(error) => error.to_string(),
    };
    expected.assert_eq(&said);
}

#[test]
fn names_are_there_and_once() {
    let bot = json!({"name": "bot", "match": {"user": "a"}});
    check(
        json!({
            "principals": [bot, bot, {"name": " "}],
            "budgets": [{"name": "", "limit": 1}],
            "rate_limits": [{"name": "r", "requests": 1}, {"name": "r", "requests": 1}],
        }),
        &expect![[r#"
            principals[1] (bot): `name` is used by an entry before it
            principals[2] ( ): `name` is empty
            principals[2] ( ): `match` names nothing, so no process would match
            budgets[0]: `name` is empty
            rate_limits[1] (r): `name` is used by an entry before it"#]],
    );
}

#[test]
fn what_is_referred_to_must_exist() {
    check(
        json!({
            "principals": [{"name": "bot", "match": {"user": "a"}, "grant": "g", "subagent_of": "x"}],
            "budgets": [{"name": "b", "principal": "nobody", "limit": 1}],
            "rate_limits": [{"name": "r", "principal": "nobody", "requests": 1}],
            "policies": [{"name": "p", "principal": "nobody", "denied_models": ["a"]}],
            "sla": [{"tier": "gold", "principal": "nobody", "latency_target_ms": 0}],
        }),
        &expect![[r#"
            principals[0] (bot): `subagent_of` names `x`, and none stands before it
            principals[0] (bot): `grant` names `g`, and there is none
            policies[0] (p): `principal` names `nobody`, and there is none
            budgets[0] (b): `principal` names `nobody`, and there is none
            rate_limits[0] (r): `principal` names `nobody`, and there is none
            sla[0] (gold): `latency_target_ms` is 0, which no call can meet
            sla[0] (gold): `principal` names `nobody`, and there is none"#]],
    );
}

#[test]
fn amounts_and_periods_must_be_possible() {
    check(
        json!({
            "budgets": [
                {"name": "a", "limit": -5.0},
                {"name": "b", "limit": 1e10},
                {"name": "c", "limit": 0.5, "unit": "tokens"},
                {"name": "d", "limit": 1, "timezone": "Mars/Olympus", "thresholds": [0, 101]},
                {"name": "e", "limit": -0.5, "unit": "compute_seconds"},
            ],
            "rate_limits": [{"name": "r", "requests": 0}, {"name": "s"}],
            "policies": [{"name": "p", "max_cost": -1.0}, {"name": "q"}],
            "prices": {
                "default_max_seconds": 0,
                "overrides": [
                    {"model": "m", "input_per_million": -1, "output_per_million": 1},
                    {"model": "n", "per_second": 1e7, "max_seconds": 0},
                    {"model": "o", "output_per_million": 1},
                    {"model": "p", "max_seconds": 5},
                ],
            },
        }),
        &expect![[r#"
            policies[0] (p): `max_cost` -1 is below zero
            policies[1] (q): `allowed_models` or another rule is missing: it forbids nothing
            budgets[0] (a): `limit` -5 is below zero
            budgets[1] (b): `limit` 10000000000 is above the largest amount, 9000000000
            budgets[2] (c): `limit` 0.5 is not a whole number of tokens
            budgets[3] (d): `timezone` `Mars/Olympus` is not a time zone like UTC or Europe/Berlin
            budgets[3] (d): `thresholds` are percentages from 1 to 100
            budgets[4] (e): `limit` -0.5 is below zero
            rate_limits[0] (r): `requests` is 0; to refuse everything, use a policy
            rate_limits[1] (s): `requests` or `concurrent` is missing: it limits nothing
            prices.overrides[0] (m): `input_per_million` -1 is below zero
            prices.overrides[1] (n): `per_second` 10000000 is above the largest amount, 1000000
            prices.overrides[1] (n): `max_seconds` 0 is not from 1 to 9000000000
            prices.overrides[2] (o): `input_per_million` is missing, and no `per_second` is given either
            prices.overrides[3] (p): `input_per_million` is missing, and no `per_second` is given either
            prices.overrides[3] (p): `output_per_million` is missing, and no `per_second` is given either
            prices: `default_max_seconds` 0 is not from 1 to 9000000000"#]],
    );
}

#[test]
fn delegation_has_a_human_no_cycle_and_a_time() {
    check(
        json!({
            "humans": [{"name": "x", "identity": "x@example.org"}],
            "grants": [
                {"name": "a", "parent": "b"},
                {"name": "b", "parent": "a"},
                {"name": "root"},
                {"name": "c", "parent": "nowhere"},
                {"name": "d", "delegated_by": "x", "expires": "tomorrow"},
                {"name": "e", "delegated_by": "x", "not_before": "2027-01-02T00:00:00Z",
                 "expires": "2027-01-01T00:00:00Z"},
            ],
        }),
        &expect![[r#"
            grants[2] (root): `delegated_by` is missing: a grant without a parent needs the human it is from
            grants[3] (c): `parent` names `nowhere`, and there is none
            grants[4] (d): `expires` `tomorrow` is not a moment like 2027-01-01T00:00:00Z
            grants[5] (e): `expires` is not after `not_before`
            grants[0] (a): `parent` leads back to the grant itself
            grants[1] (b): `parent` leads back to the grant itself"#]],
    );
}

#[test]
fn a_chain_ends_in_a_human_that_is_named() {
    let human = json!({"name": "Kim Doe", "identity": "kim@example.org", "unix_user": "kdoe",
        "keys": ["sk-ssh-ed25519@openssh.com AAAAGnNr kim"]});
    let bot = |by: &str| json!({"name": "bot", "match": {"user": "a"}, "delegated_by": by});
    // Nobody is named, so nobody is known to be a human.
    check(
        json!({"grants": [{"name": "g", "delegated_by": "nightly job 3"}], "principals": [bot("nightly job 3")]}),
        &expect![[r#"
            grants[0] (g): `delegated_by` names `nightly job 3`, who is none of `humans`: add them there with `name` and `identity`, or name the human that this authority comes from"#]],
    );
    check(
        json!({
            "humans": [human],
            "grants": [
                {"name": "g", "delegated_by": "KDOE"},
                {"name": "h", "delegated_by": "kim@example.org", "accountable": "bot"},
                {"name": "i", "parent": "g", "delegated_by": "bot"},
            ],
            "principals": [bot("cron"), {"name": "b", "match": {"user": "b"}, "grant": "i", "delegated_by": "bot"}],
        }),
        &expect![[r#"
            grants[1] (h): `accountable` names `bot`, who is none of `humans`: add them there with `name` and `identity`, or name the human that this authority comes from
            principals[0] (bot): `delegated_by` names `cron`, who is none of `humans`: add them there with `name` and `identity`, or name the human that this authority comes from"#]],
    );
    check(
        json!({"require_authority": true, "principals": [bot("kim@example.org")]}),
        &expect![[r#"
            principals[0] (bot): `delegated_by` names `kim@example.org`, who is none of `humans`: add them there with `name` and `identity`, or name the human that this authority comes from"#]],
    );
    check(
        json!({
            "humans": [human, {"name": "bot", "identity": " "}, {"name": "Lee", "identity": "KDOE",
                "keys": ["AAAAC3NzaC1lZDI1NTE5", "ssh-ed25519 secret"]}],
            "principals": [bot("Kim  Doe")],
        }),
        &expect![[r#"
            humans[1] (bot): `name` is `bot`, and a principal is called that: none is human
            humans[1] (bot): `identity` is empty: write what the human is known by
            humans[2] (Lee): `identity` is `KDOE`, which another human before it is called
            humans[2] (Lee): `keys` holds `AAAAC3NzaC1lZDI1..`, which is no public key such as `ssh-ed25519 AAAA..`
            humans[2] (Lee): `keys` holds `ssh-ed25519 secr..`, which is no public key such as `ssh-ed25519 AAAA..`"#]],
    );
}

/// Two grants, the second below the first.
#[track_caller]
fn check_below(parent: Value, child: Value, expected: &Expect) {
    let named = |mut grant: Value, more: Value| {
        let (Value::Object(grant), Value::Object(more)) = (&mut grant, more) else { panic!() };
        grant.extend(more);
        Value::Object(std::mem::take(grant))
    };
    let human = json!({"name": "kim", "identity": "kim@example.org"});
    let parent = named(parent, json!({"name": "up", "delegated_by": "kim"}));
    let child = named(child, json!({"name": "down", "parent": "up"}));
    let sections = sections(json!({"humans": [human], "grants": [child, parent]}));
    let said = Settings::compile(&sections).map_or_else(|it| it.to_string(), |_| "accepted".into());
    expected.assert_eq(&said);
}

#[test]
fn a_grant_that_is_wider_than_the_one_above_it_is_refused_by_its_key() {
    let scope = |it: Value| json!({"scope": it});
    check_below(
        scope(json!({"models": ["GPT-4o*", "o3"], "providers": ["openai"]})),
        scope(json!({"models": ["gpt-4o", "gpt-4o-*", "O3"], "providers": ["openai"]})),
        &expect!["accepted"],
    );
    check_below(
        scope(
            json!({"models": ["gpt-4o*"], "regions": ["eu-*"], "max_cost": 0.5, "endpoints": ["api.openai.com"]}),
        ),
        scope(
            json!({"models": ["*", "gpt-4o", "o3"], "regions": ["EU-1"], "max_cost": 0.6, "endpoints": ["/v1/*"]}),
        ),
        &expect![[r#"
            grants[0] (down): `scope.models` names `*`, and `up` above it covers only gpt-4o*; take it out, or add it there
            grants[0] (down): `scope.models` names `o3`, and `up` above it covers only gpt-4o*; take it out, or add it there
            grants[0] (down): `scope.regions` names `EU-1`, and `up` above it covers only eu-*; take it out, or add it there
            grants[0] (down): `scope.endpoints` names `/v1/*`, and `up` above it covers only api.openai.com; take it out, or add it there
            grants[0] (down): `scope.max_cost` is 0.6 USD, and `up` above it has 0.5; make it no more, or raise that"#]],
    );
    check_below(
        json!({"expires": "2027-02-01T00:00:00Z", "not_before": "2027-01-01T00:00:00Z"}),
        json!({"expires": "2027-02-01T00:00:01Z", "not_before": "2026-12-31T00:00:00Z"}),
        &expect![[r#"
            grants[0] (down): `expires` is after `up` above it expires (2027-02-01T00:00:00Z); make it no later
            grants[0] (down): `not_before` is before `up` above it begins (2027-01-01T00:00:00Z); make it no earlier"#]],
    );
    check_below(
        json!({"expires": "2027-02-01T00:00:00Z"}),
        json!({"not_before": "2027-02-01T00:00:00Z"}),
        &expect![[r#"
            grants[0] (down): `not_before` is not before `up` above it expires (2027-02-01T00:00:00Z): it never holds"#]],
    );
    check_below(
        json!({"budget": {"limit": 20, "period": "week"}, "rate": {"requests": 60, "concurrent": 4}}),
        json!({"budget": {"limit": 21, "period": "day"}, "rate": {"requests": 2, "per": "second", "burst": 61, "concurrent": 5}}),
        &expect![[r#"
            grants[0] (down): `budget.limit` is 21 USD, and `up` above it has 20; make it no more, or raise that
            grants[0] (down): `rate.requests` is 172800 a day, and `up` above it has 86400; make it no more, or raise that
            grants[0] (down): `rate.burst` is 61 at once, and `up` above it has 60; make it no more, or raise that
            grants[0] (down): `rate.concurrent` is 5 at the same time, and `up` above it has 4; make it no more, or raise that"#]],
    );
    // For a longer time, and in another unit, more can be less.
    check_below(
        json!({"budget": {"limit": 20, "period": "day"}}),
        json!({"budget": {"limit": 90, "period": "week"}}),
        &expect!["accepted"],
    );
    check_below(
        json!({"budget": {"limit": 20}}),
        json!({"budget": {"limit": 90_000, "unit": "tokens"}}),
        &expect!["accepted"],
    );
    check_below(
        json!({"depth": 0}),
        json!({}),
        &expect![[r#"
            grants[0] (down): `parent` puts it 1 below `up`, below which there may be 0: it never holds; hang it higher, or raise `depth` there"#]],
    );
    check_below(
        json!({"max_depth": 2}),
        json!({"depth": 2}),
        &expect![[r#"
            grants[0] (down): `depth` (`max_depth`) is 2, and `up` above it leaves 1 below this one; make it no more, or raise that"#]],
    );
}

#[test]
fn a_grant_that_can_never_hold_is_refused() {
    let grant = |number: usize| match number {
        0 => json!({"name": "g0", "delegated_by": "kim"}),
        _ => json!({"name": format!("g{number}"), "parent": format!("g{}", number - 1)}),
    };
    let human = json!({"name": "kim", "identity": "kim@example.org"});
    check(
        json!({"humans": [human], "grants": (0..6).map(grant).collect::<Vec<_>>()}),
        &expect![[r#"
            grants[5] (g5): `parent` puts it 5 below `g0`, below which there may be 4: it never holds; hang it higher, or raise `depth` there"#]],
    );
    check(
        json!({"humans": [human], "grants": [
            {"name": "a", "delegated_by": "kim", "scope": {"models": [], "endpoints": ["nowhere at all"]},
             "budget": {"limit": -1}, "rate": {"burst": 2}},
            {"name": "b", "parent": "c"}, {"name": "c", "parent": "b"}, {"name": "d", "parent": "c"},
        ]}),
        &expect![[r#"
            grants[0] (a): `scope.endpoints` holds `nowhere at all`, which is no endpoint such as `POST api.openai.com/v1/chat/*`
            grants[0] (a): `budget.limit` -1 is below zero
            grants[0] (a): `rate.requests` or `concurrent` is missing: it limits nothing
            grants[1] (b): `parent` leads back to the grant itself
            grants[2] (c): `parent` leads back to the grant itself"#]],
    );
    check(
        json!({"humans": [human], "grants": [{"name": "a", "delegated_by": "kim", "scope": {"models": []}}]}),
        &expect![[r#"
            grants[0] (a): `scope.models` is empty, so the grant covers nothing; leave it out to cover all that is covered above it"#]],
    );
}

#[test]
fn providers_and_expressions_must_be_readable() {
    check(
        json!({
            "providers": [{"host": "llm.internal", "dialect": "klingon"}, {"host": "x"}],
            "policies": [{"name": "p", "denied_content": ["("]}],
        }),
        &expect![[r#"
            providers[0] (llm.internal): unknown dialect `klingon` of host `llm.internal`; known are openai, azure, azure-inference, anthropic, gemini, vertex, bedrock, mistral, cohere, groq, deepseek, xai, perplexity, together, openrouter, huggingface, ollama, vllm, llama-cpp, watsonx, replicate, copilot
            providers[1] (x): `dialect` is missing, and no `region` is given either
            policies[0] (p): `denied_content` can't be compiled: regex parse error:     (     ^ error: unclosed group"#]],
    );
}

/// Settings accepted otherwise without an effect, or with another effect than meant.
#[test]
fn a_policy_names_providers_that_there_are_and_keeps_to_its_line() {
    check(
        json!({
            "policies": [
                {"name": "p", "denied_providers": ["vertex"]},
                {"name": "q\nforbid(principal, action, resource);", "denied_models": ["m"]},
            ],
        }),
        &expect![[r#"
            policies[0] (p): `denied_providers` names `vertex`, which is no provider; `gcp.vertex_ai` is one
            policies[1] (q
            forbid(principal, action, resource);): `name` has a line break or another control character"#]],
    );
}

#[test]
fn cedar_is_parsed_validated_and_linted_with_line_and_column() {
    check_cedar(
        "@id(\"a\") @reason_code(\"POLICY_DENY_MODEL\")\nforbid (principal, action, resource) when {\n",
        &expect!["rules.cedar:2:44: unexpected end of input"],
    );
    check_cedar(
        "@id(\"a\") @reason_code(\"POLICY_DENY_MODEL\")\nforbid (principal, action, resource)\nwhen { context.regoin == \"eu\" };",
        &expect![[
            r#"rules.cedar:3:8: for policy `a`, attribute `regoin` in context for GenOps::Action::"invoke" not found"#
        ]],
    );
    check_cedar(
        "// one that is fine\n@id(\"a\") @reason_code(\"x_mine\")\nforbid (principal, action, resource);\n\nforbid (principal, action, resource);\n",
        &expect![[r#"rules.cedar:5: the policy has no `@id("..")`"#]],
    );
    for (annotations, effect) in [
        ("@id(\"a\")", "forbid"),
        ("@id(\"a\") @reason_code(\"TOO_DEAR\")", "forbid"),
        ("@id(\"a\") @reason_code(\"x_a\")", "permit"),
        ("@id(\"a\") @reason_code(\"x_a\") @genops_result(\"MAYBE\")", "forbid"),
        ("@id(\"a\") @reason_code(\"RATE_LIMITED\")", "forbid"),
        (
            "@id(\"a\") @reason_code(\"POLICY_DENY_MODEL\") @genops_result(\"RATE_LIMITED\")",
            "forbid",
        ),
        ("@id(\"a\") @reason_code(\"x_a\") @priority(\"high\")", "forbid"),
        ("@id(\"a\") @reason_code(\"x_a\") @priority(\"7\")", "forbid"),
    ] {
        let text = format!("{annotations}\n{effect} (principal, action, resource);\n");
        let expected = match (annotations, effect) {
            ("@id(\"a\")", _) => {
                expect![[r#"rules.cedar:1: policy `a`: a forbid needs `@reason_code("..")`"#]]
            }
            ("@id(\"a\") @reason_code(\"TOO_DEAR\")", _) => expect![
                "rules.cedar:1: policy `a`: `TOO_DEAR` is no reason code of the specification, nor `x_..`"
            ],
            (_, "permit") => expect![
                "rules.cedar:1: policy `a`: a permit has no `@reason_code`, `@genops_result` or `@genops_signal`"
            ],
            (it, _) if it.contains("MAYBE") => expect![[
                r#"rules.cedar:1: policy `a`: `@genops_result("MAYBE")` is none of the four"#
            ]],
            (it, _) if it.ends_with("@reason_code(\"RATE_LIMITED\")") => expect![
                "rules.cedar:1: policy `a`: result and reason code `RATE_LIMITED` don't go together"
            ],
            (it, _) if it.contains("high") => {
                expect![[r#"rules.cedar:1: policy `a`: `@priority("high")` is no integer"#]]
            }
            (it, _) if it.contains("\"7\"") => expect!["accepted: 1 policies"],
            _ => expect![
                "rules.cedar:1: policy `a`: result and reason code `POLICY_DENY_MODEL` don't go together"
            ],
        };
        check_cedar(&text, &expected);
    }
    check_cedar(
        "@id(\"a\") @reason_code(\"x_a\") forbid (principal, action, resource);\n@id(\"a\") @reason_code(\"x_a\") forbid (principal, action, resource);",
        &expect![[r#"rules.cedar:2: `@id("a")` is used by a policy before it"#]],
    );
    check_cedar(
        "@id(\"a\") @reason_code(\"x_a\") forbid (principal == ?principal, action, resource);",
        &expect!["rules.cedar:1: templates (`?principal`) have nothing to link them"],
    );
}

#[test]
fn a_fault_in_a_later_statement_has_its_own_line() {
    let fine = "@id(\"a\") @reason_code(\"x_a\")\nforbid (principal, action, resource)\nwhen { context.model == \"a;b\" }; // fine; so far\n\n";
    let wrong = "@id(\"b\") @reason_code(\"x_b\")\nforbid (principal, action, resource)\nwhen { context.modle == \"a\" };\n";
    check_cedar(
        &format!("{fine}{wrong}"),
        &expect![[
            r#"rules.cedar:7:8: for policy `b`, attribute `modle` in context for GenOps::Action::"invoke" not found"#
        ]],
    );
    check_cedar(
        &format!("{fine}@id(\"b\") forbid (principal, action, resource)\nwhn {{ true }};"),
        &expect!["rules.cedar:6:1: invalid policy condition: whn"],
    );
}

/// The example of the interface description, as far as read by governance.
#[test]
fn the_short_form_becomes_cedar() {
    let settings = Settings::compile(&sections(json!({
        "principals": [{
            "name": "refund-bot",
            "match": {"user": "svc-refund", "exe": "/usr/bin/python3*"},
            "team": "payments", "project": "refunds", "cost_center": "cc-42",
            "delegated_by": "alice@example.com", "expires": "2027-01-01T00:00:00Z",
        }],
        "policies": [{
            "name": "refund-models",
            "principal": "refund-bot",
            "allowed_providers": ["openai", "anthropic"],
            "allowed_models": ["gpt-4o-mini*", "claude-*"],
            "denied_models": ["*-pro"],
            "allowed_regions": ["eu-*"],
            "denied_content": ["(?i)internal \"use\" only"],
            "max_cost": 0.50,
            "approval_above": 0.25,
            "enforcement": "block",
        }],
    })))
    .unwrap();
    let texts: Vec<&str> = settings.cedar().map(|(_, text)| text).collect();
    let expected = expect![[r#"
        @id("refund-models.allowed_providers")
        @reason_code("POLICY_DENY_MODEL")
        @reason("only these providers are allowed: openai, anthropic")
        forbid (principal in GenOps::Workload::"refund-bot", action == GenOps::Action::"invoke", resource)
        unless { context.provider like "openai" || context.provider like "anthropic" };

        @id("refund-models.allowed_models")
        @reason_code("POLICY_DENY_MODEL")
        @reason("only these models are allowed: gpt-4o-mini*, claude-*")
        forbid (principal in GenOps::Workload::"refund-bot", action == GenOps::Action::"invoke", resource)
        unless { context.readable && (context.model like "gpt-4o-mini*" || context.model like "claude-*") };

        @id("refund-models.denied_models")
        @reason_code("POLICY_DENY_MODEL")
        @reason("these models are denied: *-pro")
        forbid (principal in GenOps::Workload::"refund-bot", action == GenOps::Action::"invoke", resource)
        when { context.model like "*-pro" || !context.readable };

        @id("refund-models.allowed_regions")
        @reason_code("POLICY_DENY_REGION")
        @reason("only these regions are allowed: eu-*")
        forbid (principal in GenOps::Workload::"refund-bot", action == GenOps::Action::"invoke", resource)
        unless { context.region like "eu-*" };

        @id("refund-models.denied_content")
        @reason_code("POLICY_DENY_CONTENT")
        @reason("the text sent to the model matches denied content")
        forbid (principal in GenOps::Workload::"refund-bot", action == GenOps::Action::"invoke", resource)
        when { context.content.contains("refund-models.denied_content") || !context.readable };

        @id("refund-models.max_cost")
        @reason_code("BUDGET_EXCEEDED")
        @reason("one request may cost at most 0.5 USD")
        forbid (principal in GenOps::Workload::"refund-bot", action == GenOps::Action::"invoke", resource)
        when { context.est_nano_usd > 500000000 || !context.readable };

        @id("refund-models.approval_above")
        @reason_code("x_approval_required")
        @reason("a human must approve a request that may cost more than 0.25 USD")
        forbid (principal in GenOps::Workload::"refund-bot", action == GenOps::Action::"invoke", resource)
        when { context.est_nano_usd > 250000000 || !context.readable }
        unless { context.approved };
    "#]];
    expected.assert_eq(&texts.join("\n"));
}

#[test]
fn an_unknown_key_is_refused() {
    let error = serde_json::from_value::<genops_governance::PolicyConfig>(
        json!({"name": "p", "denied_modles": []}),
    )
    .unwrap_err();
    assert!(error.to_string().starts_with("unknown field `denied_modles`"), "{error}");
}
