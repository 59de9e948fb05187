#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::needless_raw_string_hashes,
    reason = "a test may panic, and expectations are pasted"
)]

use std::path::Path;

use clap::Parser as _;
use expect_test::{Expect, expect};
use genops_governance as governance;
use genops_governance::time::parse_moment;
use genops_governance::{
    Attribution, AwuId, CaptureLevel, Mechanism, Now, PolicyResult, ReasonCode, Record, RecordKind,
};

use super::*;
use crate::journal::entry::Kind as RecordType;
use crate::journal::{Journal, Opening, sha256_text};

const POLICY: [u8; 32] = [0x0d; 32];
const PRICES: [u8; 32] = [0x0e; 32];

/// End of a call.
#[derive(Clone, Copy)]
enum End {
    /// Basis, nano-USD, tokens in and out.
    Settled(&'static str, i64, u64, u64),
    /// As written by older agents, without a basis of the amount.
    Old(i64),
    /// Charged in full.
    Full,
    Released,
    Refused,
    Open,
}

/// A journal with calls.
struct Book {
    journal: Journal,
    calls: u64,
}

impl Book {
    fn open(folder: &Path) -> Self {
        let origin = Some("example.org/genops/ledger".to_owned());
        let opening = Opening { origin, ..Opening::default() };
        let at = moment("2026-10-30T08:00:00Z");
        let (journal, _) = Journal::open(folder, opening, at).unwrap();
        let mut book = Self { journal, calls: 0 };
        for (kind, hash) in [(RecordKind::PolicyLoaded, POLICY), (RecordKind::PriceLoaded, PRICES)]
        {
            let detail = vec![("hash", sha256_text(&hash))];
            book.put(&Record { detail, ..blank(at, kind) });
        }
        book
    }

    fn put(&mut self, record: &Record) {
        self.journal.record(record).unwrap();
        if self.journal.is_crowded() {
            self.journal.commit().unwrap();
        }
    }

    fn close(mut self) {
        self.journal.commit().unwrap();
        self.journal.close(moment("2026-12-01T12:00:00Z")).unwrap();
    }

    /// Writes a call in the engine's form, with two budgets in USD.
    fn call(&mut self, at: &str, team: &str, model: (&'static str, &str), end: End) {
        self.calls += 1;
        let at = moment(at);
        let who = Some(who(team, self.calls));
        let what = Some(what(model.0, model.1));
        let awu = Some(AwuId { trace: [7; 16], span: self.calls.to_be_bytes() });
        let worst = 9_000_000;
        let inputs = governance::Inputs { nano_usd: Some(worst), ..Default::default() };
        let refused = matches!(end, End::Refused);
        let decision = governance::Decided {
            result: if refused { PolicyResult::Blocked } else { PolicyResult::Allowed },
            reason: refused.then_some(ReasonCode::PolicyDenyModel),
            policy: None,
            matched: Vec::new(),
            policy_hash: POLICY,
            epoch: 1,
            prevented: refused,
        };
        let part = |kind| Record { awu, who: who.clone(), what: what.clone(), ..blank(at, kind) };
        let decided = part(RecordKind::Decision);
        self.put(&Record { inputs: Some(inputs), decision: Some(decision), ..decided });
        if refused {
            return;
        }
        self.put(&Record {
            accounts: accounts(worst, None, false),
            ..part(RecordKind::Reservation)
        });
        let (kind, actual, detail) = match end {
            End::Refused | End::Open => return,
            End::Released => (RecordKind::Release, Some(0), Vec::new()),
            End::Full => (RecordKind::Reconciliation, None, vec![("basis", "reserved".to_owned())]),
            End::Old(nano) => (RecordKind::Reconciliation, Some(nano), Vec::new()),
            End::Settled(basis, nano, input, output) => {
                let detail = vec![
                    ("basis", basis.to_owned()),
                    ("in", input.to_string()),
                    ("out", output.to_string()),
                    ("cost", nano.to_string()),
                ];
                (RecordKind::Reconciliation, Some(nano), detail)
            }
        };
        let accounts = accounts(worst, actual, actual.is_none());
        self.put(&Record { accounts, detail, ..part(kind) });
    }
}

fn moment(text: &str) -> Now {
    let unix_ns = parse_moment(text).unwrap();
    Now { mono_ns: 1, unix_ns }
}

fn blank(at: Now, kind: RecordKind) -> Record {
    Record {
        at,
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

fn who(team: &str, number: u64) -> governance::Who {
    let text = |it: &str| Some(it.to_owned());
    let attribution = Attribution {
        principal: format!("{team}-bot"),
        mapped: true,
        team: text(team),
        project: number.is_multiple_of(2).then(|| "north".to_owned()),
        cost_center: text("=cc,\"7\""),
        customer_id: number.is_multiple_of(3).then(|| format!("c{}", number % 4)),
        feature: number.is_multiple_of(5).then(|| "search".to_owned()),
        ..Attribution::default()
    };
    governance::Who {
        attribution,
        process: None,
        pid: Some(77),
        exe: text("/opt/bot"),
        uid: Some(1009),
        user: (number % 2 == 1).then(|| "svc".to_owned()),
        systemd_unit: None,
        container_id: None,
        pod_uid: None,
        namespace: None,
        cgroup: None,
    }
}

fn what(provider: &str, model: &str) -> governance::What {
    governance::What {
        operation: Some("chat".to_owned()),
        operation_type: "inference",
        provider: Some(provider.to_owned()),
        model: Some(model.to_owned()),
        region: None,
        server: None,
        api: None,
        capture: CaptureLevel::Full,
        mechanism: Mechanism::EgressHold,
    }
}

/// Two budgets drawn on by a call.
fn accounts(reserved: i64, actual: Option<i64>, incomplete: bool) -> Vec<governance::Accounted> {
    let account = |name: &str| governance::Accounted {
        budget: Some(name.to_owned()),
        period: Some("month".to_owned()),
        unit: governance::Unit::Usd,
        reserved,
        actual,
        remaining: None,
        incomplete,
        price_hash: PRICES,
        ledger_sequence: 1,
    };
    vec![account("team-month"), account("company-month")]
}

const MINI: (&str, &str) = ("openai", "gpt-4o-mini");
const HAIKU: (&str, &str) = ("anthropic", "claude-haiku-4-5");

/// A log with a call of every kind, around November in Berlin time.
fn november(folder: &Path) {
    let mut book = Book::open(folder);
    book.call("2026-10-31T22:59:59Z", "ops", MINI, End::Settled("reported", 1, 9, 9));
    book.call("2026-10-31T23:30:00Z", "ops", MINI, End::Settled("reported", 1_234_567, 812, 64));
    book.call("2026-11-02T09:00:00Z", "ops", HAIKU, End::Settled("estimated", 5_000_001, 40, 2));
    book.call("2026-11-02T09:00:01Z", "lab", HAIKU, End::Full);
    book.call("2026-11-15T00:00:00Z", "lab", MINI, End::Refused);
    book.call("2026-11-16T00:00:00Z", "lab", MINI, End::Released);
    book.call("2026-11-17T00:00:00Z", "lab", MINI, End::Old(70));
    book.call("2026-11-30T22:59:59Z", "ops", MINI, End::Settled("reported", 3, 1, 1));
    book.call("2026-11-30T23:00:00Z", "ops", MINI, End::Settled("reported", 7, 1, 1));
    book.close();
}

#[derive(Debug, clap::Parser)]
struct Command {
    #[command(flatten)]
    report: Report,
}

/// Runs the command on a log at the time `now`.
fn make_at(folder: &Path, now: &str, arguments: &[&str]) -> (Report, Made) {
    let place = folder.to_str().unwrap();
    let all = ["report", place].into_iter().chain(arguments.iter().copied());
    let Command { report } = Command::try_parse_from(all).unwrap();
    let made = report.make(moment(now).unix_ns).unwrap();
    (report, made)
}

fn written(report: &Report, made: &Made) -> String {
    let mut out = Vec::new();
    report.output.write(&made.table, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[track_caller]
fn check(arguments: &[&str], expected: &Expect) {
    let folder = tempfile::tempdir().unwrap();
    november(folder.path());
    let (report, made) = make_at(folder.path(), "2026-12-24T00:00:00Z", arguments);
    expected.assert_eq(&written(&report, &made));
}

const BERLIN: [&str; 4] = ["--month", "2026-11", "--time-zone", "Europe/Berlin"];

#[test]
fn a_month_in_a_time_zone_by_team_and_provider() {
    check(
        &[&BERLIN[..], &["--by", "team,provider"]].concat(),
        &expect![[r#"
            Spent by team, provider, 2026-11 (Europe/Berlin)
            TEAM   PROVIDER   CALLS   ACTUAL_USD  REPORTED_USD  ESTIMATED_USD  CHARGED_AS_RESERVED_USD  UNKNOWN_BASIS_USD  BLOCKED  BLOCKED_USD  NEVER_RAN  INPUT_TOKENS  OUTPUT_TOKENS  WITHOUT_TOKENS
            lab    anthropic      1        0.009          0.00           0.00                    0.009               0.00        0         0.00          0             0              0               1
            ops    anthropic      1  0.005000001          0.00    0.005000001                     0.00               0.00        0         0.00          0            40              2               0
            ops    openai         2   0.00123457    0.00123457           0.00                     0.00               0.00        0         0.00          0           813             65               0
            lab    openai         1   0.00000007          0.00           0.00                     0.00         0.00000007        1        0.009          1             0              0               1
            total                 5  0.015234641    0.00123457    0.005000001                    0.009         0.00000007        1        0.009          1           853             67               2
            calls without a count of tokens: 2 (the provider told none)
            blocked_usd: what would have been set aside for the calls, not what they would have cost
            unknown_basis_usd: the records do not say what the amount goes by
            charged_as_reserved_usd: nothing is known of the usage, the worst case is charged
            log example.org/genops/ledger of one host, 30 records: verified, with the key found in it
        "#]],
    );
}

#[test]
fn csv_has_every_column_and_no_sum() {
    check(
        &[&BERLIN[..], &["--by", "cost-center", "--output", "csv"]].concat(),
        &expect![[r#"
        cost_center,calls,actual_usd,reported_usd,estimated_usd,charged_as_reserved_usd,unknown_basis_usd,open,open_reserved_usd,blocked,blocked_usd,never_ran,undecided,without_usd,input_tokens,output_tokens,cached_tokens,without_tokens
        "'=cc,""7""",5,0.015234641,0.00123457,0.005000001,0.009,0.00000007,0,0.00,1,0.009,1,0,0,853,67,0,2
    "#]],
    );
}

#[test]
fn csv_of_calls_is_a_row_a_call_in_usd() {
    check(
        &[&BERLIN[..], &["--calls", "--output", "csv"]].concat(),
        &expect![[r#"
        time,record,awu,principal,team,project,cost_center,customer_id,feature,user,exe,provider,model,response_model,result,reason,state,basis,reserved_usd,actual_usd,blocked_usd,input_tokens,output_tokens,cached_tokens
        2026-10-31T23:30:00.000Z,6,07070707070707070707070707070707-0000000000000002,ops-bot,ops,north,"'=cc,""7""",,,uid 1009,/opt/bot,openai,gpt-4o-mini,,ALLOWED,,settled,reported,0.009,0.001234567,,812,64,
        2026-11-02T09:00:00.000Z,9,07070707070707070707070707070707-0000000000000003,ops-bot,ops,,"'=cc,""7""",c3,,svc,/opt/bot,anthropic,claude-haiku-4-5,,ALLOWED,,settled,estimated,0.009,0.005000001,,40,2,
        2026-11-02T09:00:01.000Z,12,07070707070707070707070707070707-0000000000000004,lab-bot,lab,north,"'=cc,""7""",,,uid 1009,/opt/bot,anthropic,claude-haiku-4-5,,ALLOWED,,settled,reserved,0.009,0.009,,,,
        2026-11-15T00:00:00.000Z,15,07070707070707070707070707070707-0000000000000005,lab-bot,lab,,"'=cc,""7""",,search,svc,/opt/bot,openai,gpt-4o-mini,,BLOCKED,POLICY_DENY_MODEL,refused,,,,0.009,,,
        2026-11-16T00:00:00.000Z,16,07070707070707070707070707070707-0000000000000006,lab-bot,lab,north,"'=cc,""7""",c2,,uid 1009,/opt/bot,openai,gpt-4o-mini,,ALLOWED,,released,,0.009,,,,,
        2026-11-17T00:00:00.000Z,19,07070707070707070707070707070707-0000000000000007,lab-bot,lab,,"'=cc,""7""",,,svc,/opt/bot,openai,gpt-4o-mini,,ALLOWED,,settled,unknown,0.009,0.00000007,,,,
        2026-11-30T22:59:59.000Z,22,07070707070707070707070707070707-0000000000000008,ops-bot,ops,north,"'=cc,""7""",,,uid 1009,/opt/bot,openai,gpt-4o-mini,,ALLOWED,,settled,reported,0.009,0.000000003,,1,1,
    "#]],
    );
}

#[test]
fn markdown_and_json_say_the_same() {
    check(
        &["--by", "day", "--until", "2026-11-01", "--output", "markdown"],
        &expect![[r#"
        Spent by day, before 2026-11-01T00:00:00.000Z

        | DAY | CALLS | ACTUAL\_USD | REPORTED\_USD | INPUT\_TOKENS | OUTPUT\_TOKENS |
        | --- | ---: | ---: | ---: | ---: | ---: |
        | 2026-10-31 | 2 | 0.001234568 | 0.001234568 | 821 | 73 |
        | total | 2 | 0.001234568 | 0.001234568 | 821 | 73 |

        - log example.org/genops/ledger of one host, 30 records: verified, with the key found in it
    "#]],
    );
    check(
        &["--by", "user", "--model", "claude-haiku-4-5", "--output", "json"],
        &expect![[r#"
        {
          "by": [
            "user"
          ],
          "log": {
            "origin": "example.org/genops/ledger",
            "records": 30,
            "verified": true,
            "gaps": 0,
            "records_lost": 0,
            "first_record": 0
          },
          "window": {
            "from": null,
            "until": null,
            "time_zone": "UTC"
          },
          "rows": [
            {
              "user": "uid 1009",
              "calls": 1,
              "actual_usd": "0.009",
              "reported_usd": "0.00",
              "estimated_usd": "0.00",
              "charged_as_reserved_usd": "0.009",
              "unknown_basis_usd": "0.00",
              "open": 0,
              "open_reserved_usd": "0.00",
              "blocked": 0,
              "blocked_usd": "0.00",
              "never_ran": 0,
              "undecided": 0,
              "without_usd": 0,
              "input_tokens": 0,
              "output_tokens": 0,
              "cached_tokens": 0,
              "without_tokens": 1
            },
            {
              "user": "svc",
              "calls": 1,
              "actual_usd": "0.005000001",
              "reported_usd": "0.00",
              "estimated_usd": "0.005000001",
              "charged_as_reserved_usd": "0.00",
              "unknown_basis_usd": "0.00",
              "open": 0,
              "open_reserved_usd": "0.00",
              "blocked": 0,
              "blocked_usd": "0.00",
              "never_ran": 0,
              "undecided": 0,
              "without_usd": 0,
              "input_tokens": 40,
              "output_tokens": 2,
              "cached_tokens": 0,
              "without_tokens": 0
            }
          ],
          "total": {
            "calls": 2,
            "actual_usd": "0.014000001",
            "reported_usd": "0.00",
            "estimated_usd": "0.005000001",
            "charged_as_reserved_usd": "0.009",
            "unknown_basis_usd": "0.00",
            "open": 0,
            "open_reserved_usd": "0.00",
            "blocked": 0,
            "blocked_usd": "0.00",
            "never_ran": 0,
            "undecided": 0,
            "without_usd": 0,
            "input_tokens": 40,
            "output_tokens": 2,
            "cached_tokens": 0,
            "without_tokens": 1
          },
          "notes": [
            "calls without a count of tokens: 1 (the provider told none)",
            "charged_as_reserved_usd: nothing is known of the usage, the worst case is charged",
            "log example.org/genops/ledger of one host, 30 records: verified, with the key found in it"
          ]
        }
    "#]],
    );
}

#[test]
fn every_grouping_comes_to_the_same_sum() {
    let folder = tempfile::tempdir().unwrap();
    november(folder.path());
    let directory = Directory::new(folder.path());
    let read = units::read(&directory, &Which::default(), Span::default()).unwrap();
    assert_eq!(read.units.len(), 9);
    let all = <Dimension as clap::ValueEnum>::value_variants();
    let number = |cell: &Cell| match cell {
        Cell::Count(count) => *count,
        Cell::Usd(nano) => i128::from(*nano),
        other => panic!("{other:?} in a sum"),
    };
    for zone in [TimeZone::UTC, parse_zone("Pacific/Auckland").unwrap()] {
        for subset in 0..1_usize << all.len() {
            let by: Vec<Dimension> = (0..all.len())
                .filter(|index| subset & (1 << index) != 0)
                .map(|index| all[index])
                .collect();
            let (groups, total) = groups(&read.units, &by, &zone);
            for (index, cell) in total.cells().iter().enumerate() {
                let sum: i128 = groups.iter().map(|(_, it)| number(&it.cells()[index])).sum();
                assert_eq!(sum, number(cell), "{by:?}: {}", Sums::COLUMNS[index].name);
            }
        }
    }
}

#[test]
fn a_month_that_is_not_over_has_a_forecast_and_others_have_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut book = Book::open(folder.path());
    book.call("2026-11-03T00:00:00Z", "ops", MINI, End::Settled("reported", 3_000_001, 1, 1));
    book.close();
    let at = |now: &str, arguments: &[&str]| {
        let (_, made) = make_at(folder.path(), now, arguments);
        let total = made.table.total.unwrap();
        let forecast = made.table.columns.last().unwrap().name == "forecast_usd";
        forecast.then(|| total.last().cloned().unwrap())
    };
    // Ten days of thirty: three times as much.
    let month = ["--month", "2026-11"];
    assert_eq!(at("2026-11-11T00:00:00Z", &month), Some(Cell::Usd(9_000_003)));
    // A second is left.
    assert_eq!(at("2026-11-30T23:59:59Z", &month), Some(Cell::Usd(3_000_002)));
    assert_eq!(at("2026-12-01T00:00:00Z", &month), None);
    assert_eq!(at("2026-11-11T00:00:00Z", &["--month", "2026-12"]), None);
    assert_eq!(at("2026-11-11T00:00:00Z", &["--since", "2026-11-01"]), None);
    // Records begin on the 30th: the time before is not counted.
    let october = at("2026-10-30T20:00:00Z", &["--month", "2026-10"]);
    assert_eq!(october, Some(Cell::Usd(0)));
}

#[test]
fn open_calls_and_gaps_are_counted_and_said() {
    let folder = tempfile::tempdir().unwrap();
    let mut book = Book::open(folder.path());
    book.call("2026-11-05T10:00:00Z", "ops", MINI, End::Settled("reported", 20, 1, 1));
    book.call("2026-11-05T10:00:01Z", "ops", MINI, End::Open);
    let lost = [("records", "12".to_owned()), ("why", "a full disk".to_owned())];
    book.journal.event(moment("2026-11-05T10:00:02Z"), RecordType::Gap, &lost).unwrap();
    book.close();
    let (report, made) = make_at(folder.path(), "2026-12-24T00:00:00Z", &[]);
    expect![[r#"
        Spent by team, all that the log holds
        TEAM   CALLS  ACTUAL_USD  REPORTED_USD  OPEN  OPEN_RESERVED_USD  INPUT_TOKENS  OUTPUT_TOKENS
        ops        2  0.00000002    0.00000002     1              0.009             1              1
        total      2  0.00000002    0.00000002     1              0.009             1              1
        open calls: 1 (set aside and not settled; not in actual_usd)
        log example.org/genops/ledger of one host, 11 records: verified, with the key found in it
        gaps in the log: 1 (12 records lost); calls may be missing
    "#]]
    .assert_eq(&written(&report, &made));
}

#[test]
fn a_refusal_is_worth_what_would_have_been_set_aside_and_a_half_read_one_is_not_known() {
    let folder = tempfile::tempdir().unwrap();
    let mut book = Book::open(folder.path());
    let mut refuse = |second: u8, inputs: governance::Inputs| {
        book.calls += 1;
        let at = moment(&format!("2026-11-05T10:00:0{second}Z"));
        let decision = governance::Decided {
            result: PolicyResult::Blocked,
            reason: Some(ReasonCode::PolicyDenyModel),
            policy: None,
            matched: Vec::new(),
            policy_hash: POLICY,
            epoch: 1,
            prevented: true,
        };
        let record = Record {
            awu: Some(AwuId { trace: [3; 16], span: book.calls.to_be_bytes() }),
            who: Some(who("ops", 2)),
            what: Some(what(MINI.0, MINI.1)),
            inputs: Some(inputs),
            decision: Some(decision),
            ..blank(at, RecordKind::Decision)
        };
        book.put(&record);
    };
    // Usual cost of similar calls, and worst case of the call.
    let usual = governance::Inputs {
        nano_usd: Some(40),
        worst_nano_usd: Some(9_000),
        ..governance::Inputs::default()
    };
    refuse(1, usual);
    let seen = governance::Seen { early: true, ..governance::Seen::default() };
    refuse(2, governance::Inputs { nano_usd: Some(7), seen, ..governance::Inputs::default() });
    book.close();
    let (report, made) = make_at(folder.path(), "2026-12-24T00:00:00Z", &[]);
    expect![[r#"
        Spent by team, all that the log holds
        TEAM   CALLS  ACTUAL_USD  BLOCKED  BLOCKED_USD  INPUT_TOKENS  OUTPUT_TOKENS
        ops        0        0.00        2   0.00000004             0              0
        total      0        0.00        2   0.00000004             0              0
        blocked calls without an amount in USD: 1 (no known price, or not read whole; not in blocked_usd)
        blocked_usd: what would have been set aside for the calls, not what they would have cost
        log example.org/genops/ledger of one host, 7 records: verified, with the key found in it
    "#]]
    .assert_eq(&written(&report, &made));
}

/// A contact without a readable request, in the engine's form.
fn contact(book: &mut Book, at: &str, team: &str, refused: bool) -> AwuId {
    book.calls += 1;
    let at = moment(at);
    let awu = AwuId { trace: [9; 16], span: book.calls.to_be_bytes() };
    let (code, result) = if refused {
        (Some(ReasonCode::UNINSPECTABLE), PolicyResult::Blocked)
    } else {
        (Some(ReasonCode::UNINSPECTABLE), PolicyResult::Warning)
    };
    let what = governance::What { capture: CaptureLevel::Metadata, ..what("openai", "") };
    let who = governance::Who { pid: Some(9), ..who(team, 2) };
    let what = governance::What { model: None, ..what };
    let part = |kind| Record {
        awu: Some(awu),
        who: Some(who.clone()),
        what: Some(what.clone()),
        ..blank(at, kind)
    };
    let decision = governance::Decided {
        result,
        reason: code,
        policy: None,
        matched: Vec::new(),
        policy_hash: POLICY,
        epoch: 1,
        prevented: refused,
    };
    let inputs = governance::Inputs { nano_usd: Some(0), ..Default::default() };
    book.put(&Record {
        inputs: Some(inputs),
        decision: Some(decision),
        ..part(RecordKind::Decision)
    });
    if !refused {
        let account = |actual: Option<i64>| governance::Accounted {
            budget: None,
            period: None,
            ..accounts(0, actual, actual.is_none()).remove(0)
        };
        let bud = vec![governance::Accounted { incomplete: false, ..account(None) }];
        book.put(&Record { accounts: bud, ..part(RecordKind::Reservation) });
        let detail = vec![("basis", "reserved".to_owned()), ("cost", "0".to_owned())];
        let end = part(RecordKind::Reconciliation);
        book.put(&Record { accounts: vec![account(None)], detail, ..end });
    }
    awu
}

#[test]
fn what_was_not_read_cost_nobody_knows_what_and_never_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut book = Book::open(folder.path());
    contact(&mut book, "2026-11-05T10:00:00Z", "ops", false);
    contact(&mut book, "2026-11-05T10:00:05Z", "lab", true);
    book.close();
    let (report, made) = make_at(folder.path(), "2026-12-24T00:00:00Z", &[]);
    expect![[r#"
        Spent by team, all that the log holds
        TEAM   CALLS  ACTUAL_USD  BLOCKED  WITHOUT_USD  INPUT_TOKENS  OUTPUT_TOKENS  WITHOUT_TOKENS
        lab        0        0.00        1            0             0              0               0
        ops        1           -        0            1             0              0               1
        total      1                    1            1             0              0               1
        calls without an amount in USD: 1 (no known price, or never counted)
        blocked calls without an amount in USD: 1 (no known price, or not read whole; not in blocked_usd)
        calls without a count of tokens: 1 (the provider told none)
        log example.org/genops/ledger of one host, 9 records: verified, with the key found in it
    "#]]
    .assert_eq(&written(&report, &made));
    let more = ["--calls", "--output", "csv"];
    let (report, made) = make_at(folder.path(), "2026-12-24T00:00:00Z", &more);
    expect![[r#"
        time,record,awu,principal,team,project,cost_center,customer_id,feature,user,exe,provider,model,response_model,result,reason,state,basis,reserved_usd,actual_usd,blocked_usd,input_tokens,output_tokens,cached_tokens
        2026-11-05T10:00:00.000Z,3,09090909090909090909090909090909-0000000000000001,ops-bot,ops,north,"'=cc,""7""",,,uid 1009,/opt/bot,openai,,,WARNING,x_uninspectable,settled,reserved,,,,,,
        2026-11-05T10:00:05.000Z,6,09090909090909090909090909090909-0000000000000002,lab-bot,lab,north,"'=cc,""7""",,,uid 1009,/opt/bot,openai,,,BLOCKED,x_uninspectable,refused,,,,,,,
    "#]]
    .assert_eq(&written(&report, &made));
}

/// Similar contacts are counted in a single record; a single contact left all the same.
#[test]
fn a_breach_of_a_contact_that_was_only_counted_is_one_call() {
    let folder = tempfile::tempdir().unwrap();
    let mut book = Book::open(folder.path());
    let all: Vec<AwuId> =
        (0..5).map(|_| contact(&mut book, "2026-11-05T10:00:00Z", "ops", true)).collect();
    let detail = vec![("above_bytes", "77".to_owned()), ("acted", "none".to_owned())];
    let breach = blank(moment("2026-11-05T10:00:01Z"), RecordKind::Breach);
    book.put(&Record { awu: all.last().copied(), detail, ..breach });
    book.close();
    let (report, made) = make_at(folder.path(), "2026-12-24T00:00:00Z", &[]);
    expect![[r#"
        Spent by team, all that the log holds
        TEAM   CALLS  ACTUAL_USD  BLOCKED  WITHOUT_USD  INPUT_TOKENS  OUTPUT_TOKENS  WITHOUT_TOKENS
        ops        1           -        4            1             0              0               1
        total      1                    4            1             0              0               1
        breached calls: 1 (left after a refusal was recorded; amount unknown)
        calls without an amount in USD: 1 (no known price, or never counted)
        blocked calls without an amount in USD: 4 (no known price, or not read whole; not in blocked_usd)
        calls without a count of tokens: 1 (the provider told none)
        log example.org/genops/ledger of one host, 11 records: verified, with the key found in it
    "#]]
    .assert_eq(&written(&report, &made));
}

#[test]
fn contacts_that_were_only_counted_are_compared_as_so_many_calls() {
    let folder = tempfile::tempdir().unwrap();
    let mut book = Book::open(folder.path());
    for _ in 0..5 {
        contact(&mut book, "2026-11-05T10:00:00Z", "ops", false);
    }
    book.close();
    let page = r#"{"object":"page","has_more":false,"data":[{"object":"bucket","start_time":1793836800,"results":[{"object":"organization.usage.completions.result","input_tokens":50,"output_tokens":60,"num_model_requests":7}]}]}"#;
    check_compared(
        folder.path(),
        page,
        &[],
        &expect![[r#"
            day,model,figure,evidence,provider,difference
            2026-11-05,,calls,5,7,2
            2026-11-05,,input_tokens,,50,50
            2026-11-05,,output_tokens,,60,60
            3 of 3 figures differ; difference is the provider's less the evidence's
        "#]],
    );
}

#[test]
fn a_log_that_was_changed_is_said_not_to_verify() {
    let folder = tempfile::tempdir().unwrap();
    november(folder.path());
    let bundles = folder.path().join("tile/entries/000.p");
    let bundle = std::fs::read_dir(bundles).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&bundle).unwrap();
    let at = bytes.windows(7).position(|it| it == b"1234567").unwrap();
    bytes[at] = b'2';
    std::fs::write(&bundle, bytes).unwrap();
    let (_, made) = make_at(folder.path(), "2026-12-24T00:00:00Z", &[]);
    assert!(matches!(made.verified, Verified::Not(_)));
    let (_, made) = make_at(folder.path(), "2026-12-24T00:00:00Z", &["--no-verify"]);
    assert!(matches!(made.verified, Verified::NotAsked));
}

#[test]
fn a_directory_that_is_no_log_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().to_str().unwrap();
    for place in [place, "/nonexistent/evidence"] {
        for more in [&[][..], &["--no-verify"]] {
            let all = ["report", place].into_iter().chain(more.iter().copied());
            let Command { report } = Command::try_parse_from(all).unwrap();
            assert!(report.make(0).is_err(), "{place} {more:?}");
        }
    }
}

#[test]
fn values_that_are_none_are_refused() {
    for wrong in [
        &["--month", "2026-13"][..],
        &["--month", "2026-1"],
        &["--month", "2026-11", "--since", "2026-11-01"],
        &["--time-zone", "Europe/Berln"],
        &["--by", "teem"],
        &["--output", "xml"],
        &["--decision", "denied"],
        &["--reason", "nope"],
        &["--calls", "--compare", "x.csv"],
    ] {
        let all = ["report"].into_iter().chain(wrong.iter().copied());
        assert!(Command::try_parse_from(all).is_err(), "{wrong:?}");
    }
}

/// Differences between a log and an export, as CSV.
#[track_caller]
fn check_compared(folder: &Path, export: &str, more: &[&str], expected: &Expect) {
    let file = folder.with_extension("export");
    std::fs::write(&file, export).unwrap();
    let place = file.to_str().unwrap();
    let arguments = [&["--compare", place, "--output", "csv"], more].concat();
    let (report, made) = make_at(folder, "2026-12-24T00:00:00Z", &arguments);
    std::fs::remove_file(&file).unwrap();
    let first = made.table.notes.first().unwrap();
    expected.assert_eq(&format!("{}{first}\n", written(&report, &made)));
}

#[test]
fn a_thousand_calls_agree_with_the_providers_counts_and_one_more_does_not() {
    for extra in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let mut book = Book::open(folder.path());
        let (mut input, mut output) = ([0, 0], [0, 0]);
        for number in 0..1_000_u64 {
            let day = usize::try_from(number % 2).unwrap();
            let at = ["2026-11-08T23:59:59Z", "2026-11-09T00:00:00Z"][day];
            let (sent, got) = (100 + number, 7 + number % 13);
            input[day] += sent;
            output[day] += got;
            let nano = i64::try_from(sent * 150 + got * 600).unwrap();
            book.call(at, "ops", MINI, End::Settled("reported", nano, sent, got));
        }
        if extra {
            book.call("2026-11-09T12:00:00Z", "ops", MINI, End::Settled("reported", 1, 5, 6));
            book.call("2026-11-09T12:00:00Z", "ops", HAIKU, End::Settled("reported", 1, 5, 6));
        }
        book.close();
        // 2026-11-08 and 2026-11-09.
        let bucket = |day: usize| {
            format!(
                r#"{{"object":"bucket","start_time":{},"results":[{{"object":"organization.usage.completions.result",
                "input_tokens":{},"output_tokens":{},"num_model_requests":500,"model":"gpt-4o-mini-2024-07-18"}}]}}"#,
                1_794_096_000 + 86_400 * day,
                input[day],
                output[day]
            )
        };
        let page =
            format!(r#"{{"object":"page","has_more":false,"data":[{},{}]}}"#, bucket(0), bucket(1));
        let expected = if extra {
            expect![[r#"
            day,model,figure,evidence,provider,difference
            2026-11-09,gpt-4o-mini,calls,501,500,-1
            2026-11-09,gpt-4o-mini,input_tokens,300005,300000,-5
            2026-11-09,gpt-4o-mini,output_tokens,6506,6500,-6
            3 of 6 figures differ; difference is the provider's less the evidence's
        "#]]
        } else {
            expect![[r#"
            day,model,figure,evidence,provider,difference
            0 of 6 figures differ; difference is the provider's less the evidence's
        "#]]
        };
        check_compared(folder.path(), &page, &[], &expected);
    }
}

#[test]
fn costs_and_sheets_of_providers_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    november(folder.path());
    check_compared(
        folder.path(),
        "start_time_iso,amount_value,amount_currency,line_item\n\
         2026-10-31T00:00:00Z,0.001234,usd,\"gpt-4o-mini-2024-07-18, input\"\n\
         2026-10-31T00:00:00Z,5.68e-7,usd,\"gpt-4o-mini-2024-07-18, output\"\n",
        &[],
        &expect![[r#"
            day,model,figure,evidence,provider,difference
            0 of 1 figures differ; difference is the provider's less the evidence's
        "#]],
    );
    check_compared(
        folder.path(),
        "usage_date_utc,model_version,usage_input_tokens_no_cache,usage_input_tokens_cache_read,\
         usage_output_tokens\n2026-11-02,claude-haiku-4-5-20251001,30,10,3\n",
        &[],
        &expect![[r#"
            day,model,figure,evidence,provider,difference
            2026-11-02,claude-haiku-4-5,output_tokens,2,3,1
            1 of 2 figures differ; difference is the provider's less the evidence's
        "#]],
    );
    check_compared(
        folder.path(),
        r#"{"data":[{"starting_at":"2026-11-02T00:00:00Z","results":[
           {"currency":"USD","amount":"1.4000001","model":"claude-haiku-4-5-20251001"}]}]}"#,
        &[],
        &expect![[r#"
            day,model,figure,evidence,provider,difference
            0 of 1 figures differ; difference is the provider's less the evidence's
        "#]],
    );
    // No model: by day alone.
    check_compared(
        folder.path(),
        r#"{"data":[{"start_time":1793404800,"results":[
           {"amount":{"value":0.001,"currency":"usd"},"line_item":null}]}]}"#,
        &[],
        &expect![[r#"
            day,model,figure,evidence,provider,difference
            2026-10-31,,cost_usd,0.001234568,0.001,-0.000234568
            1 of 1 figures differ; difference is the provider's less the evidence's
        "#]],
    );
}

#[test]
fn bedrock_rows_of_a_cost_and_usage_report_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let mut book = Book::open(folder.path());
    let claude = ("aws.bedrock", "eu.anthropic.claude-3-haiku-20240307-v1:0");
    book.call("2026-11-04T03:00:00Z", "ops", claude, End::Settled("reported", 500_000, 1500, 100));
    book.close();
    check_compared(
        folder.path(),
        "lineItem/UsageStartDate,lineItem/ProductCode,lineItem/UsageType,lineItem/UsageAmount,lineItem/UnblendedCost\n\
         2026-11-04T00:00:00Z,AmazonBedrock,EUC1-Claude3Haiku-input-tokens,1.5,0.000375\n\
         2026-11-04T00:00:00Z,AmazonBedrock,EUC1-Claude3Haiku-output-tokens,0.1,0.000125\n\
         2026-11-04T00:00:00Z,AmazonS3,Requests,12,0.1\n",
        &[],
        &expect![[r#"
            day,model,figure,evidence,provider,difference
            0 of 3 figures differ; difference is the provider's less the evidence's
        "#]],
    );
}

#[test]
fn what_is_no_export_is_refused() {
    for text in [
        "",
        "a,b\n1,2\n",
        "{\"object\":\"list\"}",
        "{\"data\":[{\"results\":[]}]}",
        "start_time,input_tokens\nyesterday,1\n",
        "start_time,input_tokens\n2026-11-01,many\n",
        "start_time_iso,amount_value,amount_currency\n2026-11-01,1,eur\n",
        "[{\"data\":[{\"start_time\":1,\"results\":[]},{\"starting_at\":\"2026-11-01T00:00:00Z\",\"results\":[]}]}]",
        "{",
    ] {
        assert!(exports::parse(text).is_err(), "{text}");
    }
}

#[test]
fn decimal_amounts_are_read_exactly() {
    for (text, digits, expected) in [
        ("0.06", 9, 60_000_000),
        ("123.78912", 7, 1_237_891_200),
        ("6e-9", 9, 6),
        ("1.5E3", 0, 1500),
        ("0.00000000049", 9, 0),
        ("0.0000000005", 9, 1),
        ("-2.5", 0, -3),
        ("12", 9, 12_000_000_000),
    ] {
        assert_eq!(exports::decimal(text, digits).unwrap(), expected, "{text}");
    }
    for text in ["", ".", "-", "1,5", "0x1", "1e", "1e99", "NaN"] {
        assert!(exports::decimal(text, 9).is_err(), "{text}");
    }
}
