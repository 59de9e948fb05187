#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::format_collect,
    clippy::needless_pass_by_value,
    clippy::needless_raw_string_hashes,
    reason = "a test may panic and be told everything by value"
)]

use std::fs;

use expect_test::{Expect, expect};
use genops_governance as governance;
use genops_governance::{
    Attribution, AwuId, CaptureLevel, Mechanism, PolicyResult, ProcessKey, ReasonCode,
};

use super::check::{Checker, Counts};
use super::*;

fn now(ms: u64) -> Now {
    Now { mono_ns: ms * 1_000_000, unix_ns: (1_795_378_193_000 + ms) * 1_000_000 }
}

fn blank(ms: u64, kind: RecordKind) -> Record {
    Record {
        at: now(ms),
        kind,
        awu: None,
        who: None,
        what: None,
        inputs: None,
        decision: None,
        accounts: Vec::new(),
        times: 1,
        detail: Vec::new(),
    }
}

fn who(principal: &str) -> governance::Who {
    governance::Who {
        attribution: Attribution {
            principal: principal.to_owned(),
            mapped: true,
            team: Some("payments".to_owned()),
            project: Some("refunds".to_owned()),
            environment: Some("production".to_owned()),
            accountable: Some("alice@example.com".to_owned()),
            ..Attribution::default()
        },
        process: Some(ProcessKey { pid: 4321, start_ns: 991_231 }),
        pid: Some(4321),
        exe: Some("/usr/bin/python3.11".to_owned()),
        uid: None,
        user: Some("svc-refund".to_owned()),
        systemd_unit: Some("refund.service".to_owned()),
        container_id: None,
        pod_uid: None,
        namespace: None,
        cgroup: Some("/system.slice/refund.service".to_owned()),
    }
}

fn awu(number: u64) -> AwuId {
    let mut id = AwuId { trace: [0x01; 16], span: number.to_be_bytes() };
    id.trace[8..].copy_from_slice(&number.to_be_bytes());
    id
}

/// Writes units as the engine would, with correct budgets.
struct Story {
    journal: Journal,
    ms: u64,
    units: u64,
    left: i64,
    ledger: u64,
}

const POLICY: [u8; 32] = [0xaa; 32];
const PRICES: [u8; 32] = [0xcc; 32];

impl Story {
    fn open(directory: &Path) -> Self {
        let opening =
            Opening { origin: Some("example.com/genops/test".to_owned()), ..Opening::default() };
        let (journal, _) = Journal::open(directory, opening, now(0)).unwrap();
        let units = journal.log.next_index() * 1000;
        let mut story = Self { journal, ms: 1, units, left: 50_000_000_000, ledger: units };
        for (kind, hash) in [(RecordKind::PolicyLoaded, POLICY), (RecordKind::PriceLoaded, PRICES)]
        {
            let detail = vec![("hash", sha256_text(&hash))];
            story.put(Record { detail, ..blank(story.ms, kind) });
        }
        story
    }

    fn put(&mut self, record: Record) {
        self.ms += 1;
        self.journal.record(&record).unwrap();
    }

    fn account(&mut self, reserved: i64, actual: Option<i64>) -> governance::Accounted {
        self.ledger += 1;
        governance::Accounted {
            budget: Some("payments-daily".to_owned()),
            period: Some("day".to_owned()),
            unit: Unit::Usd,
            reserved,
            actual,
            remaining: Some(self.left),
            incomplete: false,
            price_hash: PRICES,
            ledger_sequence: self.ledger,
        }
    }

    fn decide(&mut self, principal: &str, reason: Option<ReasonCode>) -> AwuId {
        self.decide_with(principal, reason, 0)
    }

    fn decide_with(&mut self, principal: &str, reason: Option<ReasonCode>, above: u64) -> AwuId {
        self.units += 1;
        let id = awu(self.units);
        let blocked = reason.is_some();
        let result = if blocked { PolicyResult::Blocked } else { PolicyResult::Allowed };
        let decision = governance::Decided {
            result,
            reason,
            policy: Some("refund-models".to_owned()),
            matched: vec!["refund-models".to_owned()],
            policy_hash: POLICY,
            epoch: 1,
            prevented: result == PolicyResult::Blocked,
        };
        let what = governance::What {
            operation: Some("chat".to_owned()),
            operation_type: "inference",
            provider: Some("openai".to_owned()),
            model: Some("gpt-4o-mini".to_owned()),
            region: None,
            server: Some("api.openai.com".to_owned()),
            api: Some("openai.chat"),
            capture: CaptureLevel::Full,
            mechanism: Mechanism::EgressHold,
        };
        let record = Record {
            awu: Some(id),
            who: Some(who(principal)),
            what: Some(what),
            inputs: Some(governance::Inputs { input_tokens: 1820, ..Default::default() }),
            decision: Some(decision),
            detail: if blocked { vec![("above_bytes", above.to_string())] } else { vec![] },
            ..blank(self.ms, RecordKind::Decision)
        };
        self.put(record);
        id
    }

    fn allowed(&mut self, principal: &str) {
        let id = self.decide(principal, None);
        self.left -= 12_000_000;
        let accounts = vec![self.account(12_000_000, None)];
        let at = self.ms;
        let part = |kind, accounts| Record {
            awu: Some(id),
            who: Some(who(principal)),
            accounts,
            ..blank(at, kind)
        };
        self.put(part(RecordKind::Reservation, accounts));
        self.left += 12_000_000 - 3_000_000;
        let accounts = vec![self.account(12_000_000, Some(3_000_000))];
        self.put(part(RecordKind::Reconciliation, accounts));
    }

    fn blocked(&mut self, principal: &str) {
        self.decide(principal, Some(ReasonCode::PolicyDenyModel));
    }

    fn run(&mut self, units: u64) {
        for unit in 0..units {
            let principal = ["refund-bot", "chat", "search"][(unit % 3) as usize];
            if unit % 5 == 4 {
                self.blocked(principal);
            } else {
                self.allowed(principal);
            }
            if unit % 4 == 0 {
                self.journal.commit().unwrap();
            }
        }
        self.journal.commit().unwrap();
    }
}

/// Checks the records in `directory` for consistency.
fn check(directory: &Path) -> Checker {
    let mut checker = Checker::default();
    let report = genops_evidence::Verify {
        directory,
        key: None,
        each: &mut |index, record| checker.record(index, record),
        progress: &mut |_, _| {},
    }
    .run();
    assert_eq!(report.problems, []);
    checker.finish();
    checker
}

/// Checks the records of a run of two units after `change` to their text.
#[track_caller]
fn check_changed(change: impl Fn(u64, String) -> Option<String>, expected: Expect) {
    let folder = tempfile::tempdir().unwrap();
    let mut story = Story::open(folder.path());
    story.run(5);
    story.journal.close(now(99)).unwrap();
    let mut checker = Checker::default();
    let directory = Directory::new(folder.path());
    let size = directory.checkpoint().unwrap().head.size;
    let mut index = 0;
    directory
        .records(0, size, |number, record| {
            let text = String::from_utf8(record.to_vec()).unwrap();
            if let Some(text) = change(number, text) {
                checker.record(index, text.as_bytes());
                index += 1;
            }
        })
        .unwrap();
    checker.finish();
    let found: String = checker
        .findings
        .iter()
        .map(|finding| format!("{}: {}\n", finding.seq, finding.what))
        .collect();
    expected.assert_eq(&found);
}

#[test]
fn a_record_is_compact_json_in_a_fixed_order_with_integers_only() {
    let folder = tempfile::tempdir().unwrap();
    let mut story = Story::open(folder.path());
    story.allowed("refund-bot");
    let boot = story.journal.boot.clone();
    let size = story.journal.close(now(10)).unwrap().head.size;
    let directory = Directory::new(folder.path());
    let mut text = String::new();
    directory
        .records(3, size, |index, record| {
            if index > 5 {
                return;
            }
            text.push_str(&String::from_utf8_lossy(record).replace(&boot, "0"));
            text.push('\n');
        })
        .unwrap();
    // The human's digest is keyed, so it differs in every run.
    let human = text.find("\"human\":\"").unwrap() + 9;
    let digest = text[human..].split('"').next().unwrap().to_owned();
    assert!(digest.starts_with("h:20779:") && digest.len() == 8 + 64, "{digest}");
    let text = text.replace(&digest, "h:..");
    expect![[r#"
        {"v":1,"seq":3,"t":1795378193003000000,"mono":3000000,"boot":"0","type":"decision","awu":"010101010101010100000000000003e9-00000000000003e9","who":{"prin":"refund-bot","pseq":1,"mapped":true,"team":"payments","proj":"refunds","env":"production","human":"h:..","pid":4321,"start":991231,"exe":"/usr/bin/python3.11","user":"svc-refund","unit":"refund.service","cg":"/system.slice/refund.service"},"what":{"op":"chat","type":"inference","prov":"openai","model":"gpt-4o-mini","server":"api.openai.com","api":"openai.chat","conf":"full","mechanism":"egress_hold"},"in":{"tok_in":1820,"tok_out":0,"bytes":0,"whole":false},"dec":{"result":"ALLOWED","policy":"refund-models","matched":["refund-models"],"bundle":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","epoch":1}}
        {"v":1,"seq":4,"t":1795378193004000000,"mono":4000000,"boot":"0","type":"reservation","awu":"010101010101010100000000000003e9-00000000000003e9","who":{"prin":"refund-bot","pseq":2,"pprev":3,"mapped":true,"team":"payments","proj":"refunds","env":"production","human":"h:..","pid":4321,"start":991231,"exe":"/usr/bin/python3.11","user":"svc-refund","unit":"refund.service","cg":"/system.slice/refund.service"},"bud":[{"name":"payments-daily","period":"day","unit":"nUSD","res":12000000,"rem":49988000000,"price":"sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc","led":1001}]}
        {"v":1,"seq":5,"t":1795378193004000000,"mono":4000000,"boot":"0","type":"reconciliation","awu":"010101010101010100000000000003e9-00000000000003e9","who":{"prin":"refund-bot","pseq":3,"pprev":4,"mapped":true,"team":"payments","proj":"refunds","env":"production","human":"h:..","pid":4321,"start":991231,"exe":"/usr/bin/python3.11","user":"svc-refund","unit":"refund.service","cg":"/system.slice/refund.service"},"bud":[{"name":"payments-daily","period":"day","unit":"nUSD","res":12000000,"act":3000000,"rem":49997000000,"price":"sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc","led":1002}]}
    "#]]
    .assert_eq(&text);
}

#[test]
fn a_run_holds_and_goes_on_after_a_stop() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let mut story = Story::open(folder.path());
        story.run(100);
        story.journal.close(now(5_000)).unwrap();
    }
    let checker = check(folder.path());
    assert_eq!(checker.findings, []);
    assert_eq!(checker.counts.units, 200);
    assert_eq!(checker.counts.blocked, 40);
    assert_eq!(checker.counts.principals, 3);
    assert_eq!((checker.counts.starts, checker.counts.unclean), (2, 0));
}

/// A record that closes a unit of the run before, with the unit's account.
fn late(id: AwuId, account: governance::Accounted, kind: RecordKind) -> Record {
    let detail = vec![("late", "killed before".to_owned())];
    Record { awu: Some(id), accounts: vec![account], detail, ..blank(50, kind) }
}

#[test]
fn what_a_killed_agent_had_settled_and_not_written_down_is_written_by_the_next() {
    for said in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let mut story = Story::open(folder.path());
        story.run(10);
        let (mut ids, mut accounts) = (Vec::new(), Vec::new());
        for used in [3_000_000, 5_000_000] {
            let id = story.decide("refund-bot", None);
            story.left -= 12_000_000;
            let reserved = vec![story.account(12_000_000, None)];
            let at = blank(story.ms, RecordKind::Reservation);
            story.put(Record { awu: Some(id), accounts: reserved, ..at });
            ids.push(id);
            accounts.push(used);
        }
        story.journal.commit().unwrap();
        let left = story.left + 2 * 12_000_000 - 8_000_000;
        drop(story);
        let mut story = Story::open(folder.path());
        story.left = left;
        for (id, used) in ids.into_iter().zip(accounts).filter(|_| said) {
            let account = story.account(12_000_000, Some(used));
            story.put(late(id, account, RecordKind::Reconciliation));
        }
        story.run(10);
        story.journal.close(now(99)).unwrap();
        let checker = check(folder.path());
        // State after the failing run: the units stay open, without an explanation.
        assert_eq!(checker.findings.len(), if said { 0 } else { 2 }, "{:?}", checker.findings);
    }
}

impl Story {
    /// A refusal: intent and effect. None: the agent did not record the effect.
    fn refused(&mut self, above_bytes: Option<u64>) -> AwuId {
        let id = awu(self.units + 1);
        let intent = Record { awu: Some(id), ..blank(self.ms, RecordKind::Intent) };
        self.put(intent);
        let Some(above) = above_bytes else {
            self.units += 1;
            return id;
        };
        let at = self.journal.log.next_index();
        self.decide_with("chat", Some(ReasonCode::PolicyDenyModel), above);
        assert!(self.journal.log.next_index() > at);
        id
    }

    fn breach(&mut self, id: AwuId) {
        let detail = vec![("above_bytes", "61".to_owned())];
        self.put(Record { awu: Some(id), detail, ..blank(self.ms, RecordKind::Breach) });
    }
}

fn told(checker: &Checker) -> String {
    let Checker { counts, findings, breaches, .. } = checker;
    let found: String = findings.iter().map(|it| format!("{}: {}\n", it.seq, it.what)).collect();
    let left: String = breaches.iter().map(|it| format!("{}: {}\n", it.seq, it.what)).collect();
    format!(
        "blocked {} breaches {} undecided {} gaps {}\n{left}{found}",
        counts.blocked, counts.breaches, counts.undecided, counts.gaps
    )
}

#[test]
fn a_refusal_counts_where_nothing_left_and_a_breach_takes_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut story = Story::open(folder.path());
    story.refused(Some(0));
    let id = story.refused(Some(0));
    story.refused(Some(740));
    story.breach(id);
    story.breach(id);
    story.breach(awu(77));
    story.journal.close(now(99)).unwrap();
    expect![[r#"
        blocked 2 breaches 1 undecided 0 gaps 0
        9: 61 bytes of unit 010101010101010100000000000003ea-00000000000003ea left after it was said to be stopped
        10: 61 bytes of unit 010101010101010100000000000003ea-00000000000003ea left after it was said to be stopped
        8: refused, but it does not say that nothing left
        11: a breach of unit 0101010101010101000000000000004d-000000000000004d, which was never said to be stopped
    "#]].assert_eq(&told(&check(folder.path())));
}

impl Story {
    /// Counts further alike units.
    fn counted(&mut self, count: u64, result: PolicyResult, reason: Option<ReasonCode>) {
        let decision = governance::Decided {
            result,
            reason,
            policy: None,
            matched: Vec::new(),
            policy_hash: POLICY,
            epoch: 1,
            prevented: false,
        };
        let folded = Folded {
            who: Some(who("chat")),
            what: None,
            decision,
            user: None,
            count,
            first_unix_ns: now(self.ms).unix_ns,
            last_unix_ns: now(self.ms + 400).unix_ns,
        };
        self.ms += 1;
        self.journal.folded(now(self.ms), &folded).unwrap();
    }
}

#[test]
fn units_that_are_only_counted_are_units_and_a_breach_of_one_takes_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut story = Story::open(folder.path());
    story.refused(Some(0));
    story.counted(12, PolicyResult::Blocked, Some(ReasonCode::UNINSPECTABLE));
    story.counted(5, PolicyResult::Warning, Some(ReasonCode::UNINSPECTABLE));
    story.counted(3, PolicyResult::Allowed, None);
    story.breach(awu(400));
    story.journal.close(now(99)).unwrap();
    let checker = check(folder.path());
    let Counts { units, decisions, folded, folded_records, .. } = checker.counts;
    assert_eq!((units, decisions, folded, folded_records), (21, 21, 20, 3));
    expect![[r#"
        blocked 12 breaches 1 undecided 0 gaps 0
        8: 61 bytes of unit 01010101010101010000000000000190-0000000000000190 left after it was said to be stopped
    "#]].assert_eq(&told(&checker));
}

#[test]
fn a_count_that_cannot_be_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let mut story = Story::open(folder.path());
    story.counted(0, PolicyResult::Blocked, Some(ReasonCode::UNINSPECTABLE));
    story.counted(4, PolicyResult::Blocked, None);
    story.counted(4, PolicyResult::Warning, Some(ReasonCode::NOT_PREVENTED));
    for number in 0..5 {
        story.breach(awu(400 + number));
    }
    story.journal.close(now(99)).unwrap();
    let findings = check(folder.path()).findings;
    let found: Vec<String> = findings.iter().map(|it| format!("{}: {}", it.seq, it.what)).collect();
    expect![[r#"
        3: counts 0 units from 1795378193003000000 to 1795378193403000000
        4: BLOCKED without a reason
        5: counts what was not prevented, whose accounts are touched
        10: a breach of unit 01010101010101010000000000000194-0000000000000194, which was never said to be stopped
    "#]]
    .assert_eq(&(found.join("\n") + "\n"));
}

#[test]
fn a_refusal_without_an_outcome_is_a_gap_where_the_agent_died_and_a_fault_where_it_stopped() {
    for dies in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let mut story = Story::open(folder.path());
        story.refused(None);
        story.journal.commit().unwrap();
        if dies {
            drop(story);
            story = Story::open(folder.path());
        }
        story.blocked("chat");
        story.journal.close(now(99)).unwrap();
        let told = told(&check(folder.path()));
        if dies {
            expect![[r#"
                blocked 1 breaches 0 undecided 1 gaps 1
            "#]]
            .assert_eq(&told);
        } else {
            expect![[r#"
                blocked 1 breaches 0 undecided 1 gaps 1
                3: unit 010101010101010100000000000003e9-00000000000003e9 was to be refused, and was not decided, though the agent stopped in good order
            "#]].assert_eq(&told);
        }
    }
}

/// A ledger with `amount` used of the story's budget.
fn used(amount: i64) -> Ledger {
    let (mut ledger, mut log) = (Ledger::new(), Vec::new());
    let unit = Unit::Usd;
    let key = AccountKey { budget: "payments-daily".to_owned(), part: None, start_s: 0, unit };
    let (period, unit, limit) = ("day".to_owned(), Unit::Usd, 50_000_000_000);
    let demand = governance::Demand { key, end_s: 86_400, period, unit, limit, amount };
    ledger.reserve(1, awu(1), &[demand], &mut log).unwrap();
    ledger.settle(1, awu(1), Some(vec![amount]), &mut log);
    ledger
}

/// Two runs: the first leaves `left` used, the second finds `found` used.
fn carried(left: i64, found: i64, lost: Option<&str>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut story = Story::open(folder.path());
    story.journal.balances(now(1), Moment::Start, &used(0), None).unwrap();
    story.run(5);
    story.journal.balances(now(98), Moment::Stop, &used(left), None).unwrap();
    story.journal.close(now(99)).unwrap();
    let mut story = Story::open(folder.path());
    story.journal.balances(now(1), Moment::Start, &used(found), lost).unwrap();
    story.run(5);
    story.journal.close(now(99)).unwrap();
    told(&check(folder.path()))
}

#[test]
fn what_a_start_finds_used_of_a_budget_is_what_the_stop_before_it_left() {
    // Four of five units are allowed and use 3,000,000 each.
    expect![[r#"
        blocked 2 breaches 0 undecided 0 gaps 0
    "#]]
    .assert_eq(&carried(12_000_000, 12_000_000, None));
    expect![[r#"
        blocked 2 breaches 0 undecided 0 gaps 0
        23: budget `payments-daily` (day): 0 used at the start, and 12000000 by the records before it
    "#]].assert_eq(&carried(12_000_000, 0, None));
    expect![[r#"
        blocked 2 breaches 0 undecided 0 gaps 0
        17: budget `payments-daily` (day): 11000000 used at the stop, and 12000000 by the records before it
    "#]].assert_eq(&carried(11_000_000, 11_000_000, None));
    // The agent says that the accounts were lost, and grants nothing from them.
    expect![[r#"
        blocked 2 breaches 0 undecided 0 gaps 0
    "#]]
    .assert_eq(&carried(12_000_000, 0, Some("damaged")));
}

#[test]
fn what_a_start_finds_after_a_kill_is_what_was_written_down_before_and_after_it() {
    for (found, honest) in [(17_000_000, true), (5_000_000, false)] {
        let folder = tempfile::tempdir().unwrap();
        let mut story = Story::open(folder.path());
        story.journal.balances(now(1), Moment::Start, &used(0), None).unwrap();
        story.run(5);
        let id = story.decide("refund-bot", None);
        story.left -= 12_000_000;
        let accounts = vec![story.account(12_000_000, None)];
        story.put(Record { awu: Some(id), accounts, ..blank(50, RecordKind::Reservation) });
        story.journal.commit().unwrap();
        let left = story.left + 7_000_000;
        drop(story);
        let mut story = Story::open(folder.path());
        story.journal.balances(now(1), Moment::Start, &used(found), None).unwrap();
        story.left = left;
        let account = story.account(12_000_000, Some(5_000_000));
        story.put(late(id, account, RecordKind::Reconciliation));
        story.run(5);
        story.journal.close(now(99)).unwrap();
        let checker = check(folder.path());
        assert_eq!(checker.findings.is_empty(), honest, "{:?}", checker.findings);
    }
}

#[test]
fn a_start_finds_the_principals_numbers_without_reading_the_whole_log() {
    let folder = tempfile::tempdir().unwrap();
    let mut story = Story::open(folder.path());
    story.run(7_000);
    story.journal.tick(story.journal_now()).unwrap();
    story.run(500);
    let heads = story.journal.heads.clone();
    story.journal.commit().unwrap();
    drop(story);
    let story = Story::open(folder.path());
    assert!(story.journal.listed > 0);
    assert_eq!(story.journal.heads, heads);
    story.journal.close(now(9_000)).unwrap();
    let checker = check(folder.path());
    assert_eq!(checker.findings, []);
    assert_eq!((checker.counts.starts, checker.counts.unclean), (2, 1));
}

impl Story {
    fn journal_now(&self) -> Now {
        now(self.ms)
    }
}

#[test]
fn a_long_text_is_cut_and_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let mut story = Story::open(folder.path());
    let mut record = blank(5, RecordKind::Decision);
    record.detail = vec![("name", "\u{1}é".repeat(40_000))];
    record.who = Some(who(&"p".repeat(70_000)));
    story.put(record);
    let directory = Directory::new(folder.path());
    let size = story.journal.close(now(9)).unwrap().head.size;
    let mut found = 0;
    directory
        .records(0, size, |_, record| {
            let entry: Entry<'_> = serde_json::from_slice(record).unwrap();
            found += u64::from(entry.cut);
        })
        .unwrap();
    assert_eq!(found, 1);
}

#[test]
fn nothing_that_names_a_human_is_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let mut story = Story::open(folder.path());
    story.run(10);
    story.journal.close(now(9)).unwrap();
    for bundle in fs::read_dir(folder.path().join("tile/entries/000.p")).unwrap() {
        let bytes = fs::read(bundle.unwrap().path()).unwrap();
        assert!(!bytes.windows(5).any(|window| window == b"alice"));
    }
}

#[test]
fn untouched_records_hold() {
    check_changed(|_, text| Some(text), expect![""]);
}

#[test]
fn a_missing_record_is_a_gap_in_three_counters() {
    check_changed(
        |number, text| (number != 4).then_some(text),
        expect![[r#"
            4: says that it is number 5
            5: principal `refund-bot`: number 3 after record Some(4); 2 after record Some(3) was to be expected
            5: nothing was reserved for the unit
            5: says that it is number 6
            6: says that it is number 7
            7: says that it is number 8
            8: says that it is number 9
            9: says that it is number 10
            10: says that it is number 11
            11: says that it is number 12
            12: says that it is number 13
            13: says that it is number 14
            14: says that it is number 15
            15: says that it is number 16
            16: says that it is number 17
        "#]],
    );
}

#[test]
fn money_that_does_not_add_up_is_found() {
    check_changed(
        |_, text| Some(text.replace("\"rem\":49997000000", "\"rem\":49999000000")),
        expect![[r#"
            5: budget `payments-daily`: 49999000000 left, but 49988000000 before makes it 49997000000
            7: budget `payments-daily`: 49985000000 left, but 49999000000 before makes it 49987000000
        "#]],
    );
}

#[test]
fn a_decision_by_unknown_policies_is_found() {
    check_changed(
        |number, text| {
            Some(if number == 3 { text.replace("sha256:aa", "sha256:ab") } else { text })
        },
        expect![[r#"
            3: the policies sha256:abaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa were never loaded
        "#]],
    );
}

#[test]
fn a_refusal_without_a_reason_and_an_allowance_with_one_are_found() {
    check_changed(
        |_, text| {
            Some(
                text.replace(",\"code\":\"POLICY_DENY_MODEL\"", "")
                    .replace("\"ALLOWED\"", "\"ALLOWED\",\"code\":\"BUDGET_EXCEEDED\""),
            )
        },
        expect![[r#"
            3: an allowed unit has a reason
            6: an allowed unit has a reason
            9: an allowed unit has a reason
            12: an allowed unit has a reason
            15: BLOCKED without a reason
        "#]],
    );
}
