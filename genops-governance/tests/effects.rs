//! Effect of a refusal: a unit counts as stopped if no byte left, and as executed otherwise.
#![expect(clippy::unwrap_used, reason = "tests fail by panic")]
#![expect(clippy::needless_raw_string_hashes, reason = "as the snapshots are written")]

mod support;

use expect_test::expect;
use genops_governance::{ConnId, ConnectionUpdate, Effect, Mechanism, ReasonCode, Sections};
use support::{BOT, HELD, Host, budget, chat, ok, policy};

const STOPPED: Effect = Effect { mechanism: Mechanism::EgressHold, counted: true, left_to: 0 };
const LEFT: Effect = Effect { left_to: 740, ..STOPPED };
const NOBODY_COUNTED: Effect = Effect { mechanism: Mechanism::None, counted: false, left_to: 0 };
const NEVER_TAKEN: Effect = Effect { counted: true, ..NOBODY_COUNTED };

fn denying() -> Sections {
    let rules = policy(|it| it.denied_models = vec!["gpt-4o".to_owned()]);
    Sections { budgets: vec![budget(1.0)], ..rules }
}

/// A host with a caller reading counters back, and a held connection with a refused request.
fn refused() -> (Host, ConnId) {
    let mut host = Host::new(&denying());
    host.engine.await_effects();
    let conn = host.open(HELD);
    let remote = Some("192.0.2.7:443".parse().unwrap());
    let update = ConnectionUpdate { remote, ..ConnectionUpdate::default() };
    host.engine.learn(host.now, conn, update);
    host.egress(conn, &chat("gpt-4o", "hello"));
    host.check(&expect![[r#"
        record intent
        deny c1 collateral 0
        check c1
    "#]]);
    (host, conn)
}

#[test]
fn a_refusal_of_which_nothing_left_is_decided_when_that_is_known() {
    let (mut host, conn) = refused();
    host.engine.left(host.now, conn, STOPPED);
    host.drain();
    host.close(conn).check(&expect![[r#"
        record decision
        awu error=Str("POLICY_DENY_MODEL")
          policy.result: BLOCKED
          policy.reason_code: POLICY_DENY_MODEL
          policy.name: rules.denied_models
          policy.reason: these models are denied: gpt-4o; it asks openai for gpt-4o
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]]);
}

#[test]
fn a_refusal_of_which_bytes_left_ran_and_is_charged_the_worst_case() {
    let (mut host, conn) = refused();
    host.engine.left(host.now, conn, LEFT);
    host.drain();
    host.close(conn).check(&expect![[r#"
        record decision
        record reservation [daily 1550000 None left Some(998450000)]
        record reconciliation [daily 1550000 None left Some(998450000)]
        awu error=Str("connection_closed")
          policy.result: WARNING
          policy.reason_code: x_not_prevented
          policy.name: rules.denied_models
          policy.reason: refused (POLICY_DENY_MODEL: these models are denied: gpt-4o; it asks openai for gpt-4o), but 740 bytes of it had left before it was stopped
          accounting.reserved: Double(0.00155)
          accounting.actual: Double(0.00155)
          accounting.incomplete: Bool(true)
          compliance: partial
          capture.level: partial
          enforcement.mechanism: none
    "#]]);
    let (_, account) = host.engine.ledger().accounts().next().unwrap();
    assert!(account.spent > 0 && account.reserved == 0, "{account:?}");
}

#[test]
fn its_answer_settles_it_like_any_unit() {
    let (mut host, conn) = refused();
    host.engine.left(host.now, conn, LEFT);
    host.ingress(conn, &ok()).close(conn);
    let actual = host.awus.pop().unwrap();
    assert!(!actual.outcome.actual().unwrap().incomplete);
    assert_eq!(actual.compliance(), "partial");
}

#[test]
fn where_no_socket_is_known_nothing_shows_that_it_was_stopped() {
    let (mut host, conn) = refused();
    // The connection may have ended by then.
    host.close(conn).check(&expect![[""]]);
    host.engine.left(host.now, conn, NOBODY_COUNTED);
    host.drain();
    host.check(&expect![[r#"
        record decision
        record reservation [daily 1550000 None left Some(998450000)]
        record reconciliation [daily 1550000 None left Some(998450000)]
        awu error=Str("connection_closed")
          policy.result: WARNING
          policy.reason_code: x_not_prevented
          policy.name: rules.denied_models
          policy.reason: refused (POLICY_DENY_MODEL: these models are denied: gpt-4o; it asks openai for gpt-4o), but no socket of its connection is known, so nothing shows that it was stopped
          accounting.reserved: Double(0.00155)
          accounting.actual: Double(0.00155)
          accounting.incomplete: Bool(true)
          compliance: partial
          capture.level: partial
          enforcement.mechanism: none
    "#]]);
}

#[test]
fn bytes_that_leave_later_are_a_breach_of_what_was_said_and_told_once() {
    let (mut host, conn) = refused();
    host.engine.left(host.now, conn, STOPPED);
    host.drain();
    host.close(conn);
    host.text.clear();
    for _ in 0..2 {
        host.engine.breach(host.now, conn, LEFT);
        host.drain();
    }
    host.check(&expect![[r#"
        record breach
    "#]]);
}

/// An answer shows that the request arrived, whatever the counters of the socket say.
#[test]
fn an_answer_to_what_was_said_to_be_stopped_is_a_breach_told_once() {
    let (mut host, conn) = refused();
    host.engine.left(host.now, conn, STOPPED);
    host.drain();
    host.text.clear();
    host.ingress(conn, &ok());
    host.check(&expect![[r#"
        record breach
    "#]]);
    host.text.clear();
    host.engine.breach(host.now, conn, LEFT);
    host.drain();
    host.check(&expect![[""]]);
}

/// A server ends an idle connection by an answer to no request (RFC 9110 §15.5.9).
#[test]
fn an_error_that_no_request_asked_for_is_no_breach() {
    let (mut host, conn) = refused();
    host.engine.left(host.now, conn, STOPPED);
    host.drain();
    host.text.clear();
    host.ingress(conn, b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n");
    host.check(&expect![[""]]);
}

#[test]
fn a_refusal_that_is_answered_before_its_effect_is_known_ran() {
    let (mut host, conn) = refused();
    host.ingress(conn, &ok());
    host.engine.left(host.now, conn, STOPPED);
    host.drain();
    host.close(conn);
    let ran = host.awus.pop().unwrap();
    assert!(host.awus.is_empty() && !ran.outcome.actual().unwrap().incomplete);
    let decision = ran.outcome.decision();
    assert_eq!(decision.reason().map(ReasonCode::as_str), Some("x_not_prevented"));
}

#[test]
fn what_comes_after_a_refusal_on_its_connection_is_looked_at_as_well() {
    let (mut host, conn) = refused();
    host.engine.left(host.now, conn, STOPPED);
    host.drain();
    host.text.clear();
    host.egress(conn, &chat("gpt-4o-mini", "and this?"));
    host.check(&expect![[r#"
        record intent
        check c1
    "#]]);
}

/// The agent stood still between a refusal and the verdict, the kernel let the request pass at the
/// deadline, and the client asked again: the first request ran, the second was stopped.
#[test]
fn what_the_deadline_let_pass_before_the_verdict_is_not_said_to_be_stopped() {
    let (mut host, conn) = refused();
    let first = chat("gpt-4o", "hello").len() as u64;
    host.engine.timed_out(host.now, conn, first, true);
    host.egress(conn, &chat("gpt-4o-mini", "and this?"));
    host.text.clear();
    host.engine.left(host.now, conn, Effect { left_to: first, ..STOPPED });
    host.drain();
    host.close(conn);
    let results: Vec<_> =
        host.awus.iter().map(|it| it.outcome.decision().result().as_str()).collect();
    assert_eq!(results, ["BLOCKED", "WARNING"], "{}", host.text);
    let ran = host.awus.pop().unwrap().outcome.decision();
    assert_eq!(ran.reason().map(ReasonCode::as_str), Some("x_not_prevented"));
}

/// The same, but the second request also passed at the deadline before the decision.
#[test]
fn what_had_passed_before_its_decision_is_not_said_to_be_stopped() {
    let (mut host, conn) = refused();
    let (first, second) = (chat("gpt-4o", "hello"), chat("gpt-4o-mini", "and this?"));
    let end = (first.len() + second.len()) as u64;
    host.engine.timed_out(host.now, conn, end, true);
    host.egress(conn, &second);
    host.engine.left(host.now, conn, Effect { left_to: end, ..STOPPED });
    host.drain();
    host.close(conn);
    let results: Vec<_> =
        host.awus.iter().map(|it| it.outcome.decision().result().as_str()).collect();
    assert_eq!(results, ["WARNING", "WARNING"], "{}", host.text);
}

/// More bytes of a request than the hold limit left before the end showed the content: the request
/// can't run without the end.
#[test]
fn a_refusal_at_the_end_of_a_long_request_is_measured_from_what_was_let_go() {
    for (left_beyond, expected) in [(0, "BLOCKED"), (1, "WARNING")] {
        let mut host = Host::new(&policy(|it| it.denied_content = vec!["plutonium".to_owned()]));
        host.engine.await_effects();
        let conn = host.open(HELD);
        let text = format!("{} plutonium", "a".repeat(64 << 10));
        let request = chat("gpt-4o-mini", &text);
        let (begin, end) = request.split_at(40 << 10);
        host.egress(conn, begin);
        host.egress(conn, end);
        let left_to = begin.len() as u64 + left_beyond;
        host.engine.left(host.now, conn, Effect { left_to, ..STOPPED });
        host.drain();
        host.close(conn);
        let result = host.awus.pop().unwrap().outcome.decision().result();
        assert_eq!(result.as_str(), expected, "{}", host.text);
    }
}

#[test]
fn what_ended_by_itself_before_any_byte_is_refused_and_costs_nothing() {
    let (mut host, conn) = refused();
    host.close(conn).check(&expect![[""]]);
    host.engine.left(host.now, conn, NEVER_TAKEN);
    host.drain();
    host.check(&expect![[r#"
        record decision
        awu error=Str("POLICY_DENY_MODEL")
          policy.result: BLOCKED
          policy.reason_code: POLICY_DENY_MODEL
          policy.name: rules.denied_models
          policy.reason: these models are denied: gpt-4o; it asks openai for gpt-4o
          compliance: partial
          capture.level: full
          enforcement.mechanism: none
    "#]]);
    assert_eq!(host.engine.ledger().accounts().count(), 0);
}

#[test]
fn a_socket_that_is_refused_again_before_the_first_is_settled_leaves_no_intent_open() {
    let (mut host, conn) = refused();
    host.close(conn);
    host.open_as(conn, Some(BOT), HELD);
    host.egress(conn, &chat("gpt-4o", "hello again"));
    host.close(conn);
    host.text.clear();
    host.engine.left(host.now, conn, STOPPED);
    host.drain();
    host.check(&expect![[r#"
        record decision
        awu error=Str("POLICY_DENY_MODEL")
          policy.result: BLOCKED
          policy.reason_code: POLICY_DENY_MODEL
          policy.name: rules.denied_models
          policy.reason: these models are denied: gpt-4o; it asks openai for gpt-4o
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
        record decision
        awu error=Str("POLICY_DENY_MODEL")
          policy.result: BLOCKED
          policy.reason_code: POLICY_DENY_MODEL
          policy.name: rules.denied_models
          policy.reason: these models are denied: gpt-4o; it asks openai for gpt-4o
          compliance: full
          capture.level: full
          enforcement.mechanism: egress_hold
    "#]]);
    assert_eq!(host.awus.len(), 2);
}
