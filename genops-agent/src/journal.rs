//! The evidence journal: turns decisions of the engine into numbered records of the log.
//!
//! [`Journal`] owns the [`Log`]. The journal numbers the records (densely, and densely for each
//! principal) and keeps unwanted content out of evidence: texts are cut to a stated length, and
//! human names are digested with a key that can be destroyed. The journal does not know how a
//! decision was made.
//!
//! The caller appends the records of a batch, calls [`Journal::commit`] once, and only then lets
//! requests go.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use genops_evidence::{
    AppendError, Checkpoint, CommitError, Directory, Log, OpenError, Options, PublishError,
    ReadError, Recovery,
};
use genops_governance::{Account, AccountKey, Ledger, Now, Record, RecordKind, Texts, Unit, hex};

pub(crate) mod again;
mod carried;
pub(crate) mod check;
pub(crate) mod digest;
pub(crate) mod entry;
pub(crate) mod fold;
mod principals;
pub(crate) mod retention;
pub(crate) mod sealed;

use crate::config::{Content, Evidence};
use crate::evidence::outward::{News, Outward};
use crate::evidence::ship::{self, Shipper};
use crate::metrics::Metrics;

use self::digest::Digester;
use self::entry::{
    Accounted, Balances, Count, Decided, Entry, Had, Head, Heads, Inputs, Kind, Metered, Standing,
    Text, VERSION, What, Who,
};
use self::fold::Folded;
use self::principals::Principals;
use self::retention::Keeper;
use self::sealed::Sealer;

/// A day, in nanoseconds.
const DAY_NS: u64 = 86_400_000_000_000;

/// Longest text in a record, in bytes.
const TEXT_LIMIT: usize = 1024;

/// Most items of a list in a record.
const LIST_LIMIT: usize = 24;

/// Reason recorded if a text could not be encrypted.
const NO_KEY: &str = "what was sent to a model could not be encrypted";

/// Records between two lists of principals. A start reads the records behind the last list again,
/// each at most twice.
const HEADS_EVERY: u64 = 16_384;

/// Bytes of principals in one record.
const HEADS_BYTES: usize = 32 << 10;

/// Most budgets in one record.
const BALANCES_LIMIT: usize = 128;

/// Moment of recording balances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// At the start, as the accounts' file says.
    Start,
    /// At the stop, as the agent leaves the accounts.
    Stop,
}

impl Moment {
    fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
        }
    }
}

/// Reason for failing to open the journal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    /// The log could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A record of the log could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The first record could not be written.
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// Options for opening a journal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Opening {
    /// Identity of a new log; `None`: made from the host's name and machine id.
    pub(crate) origin: Option<String>,
    /// Secret key given from outside.
    pub(crate) key_file: Option<PathBuf>,
    /// Length of a write-ahead segment, in bytes; `None`: the default length.
    pub(crate) segment_bytes: Option<u32>,
    /// Amount of prompt content in evidence.
    pub(crate) content: Content,
    /// Part of the configuration used for decisions.
    pub(crate) recipe: Option<Vec<u8>>,
    /// Details of the start for the first record: version, mode, configuration hash.
    pub(crate) detail: Vec<(&'static str, String)>,
}

/// Writer of evidence.
#[derive(Debug)]
pub(crate) struct Journal {
    log: Log,
    boot: String,
    digester: Digester,
    sealer: Sealer,
    content: Content,
    /// SHA-256 of the recipe kept beside the log.
    recipe: Option<String>,
    heads: Principals,
    /// Index behind the last list of principals.
    listed: u64,
    kernel: Option<(u64, u64)>,
    /// Records refused by the log since the last accepted record.
    lost: u64,
    buffer: Vec<u8>,
    outward: Option<Outward>,
    shipper: Option<Shipper>,
    keeper: Option<Keeper>,
    /// Reason for the pruning under way.
    pruning: &'static str,
    /// Reason for refusing to sign: a witness knows more records of the log than exist here.
    rolled_back: Option<String>,
}

impl Journal {
    /// Opens the log in `directory`, or creates a new log, and records the start durably.
    pub(crate) fn open(
        directory: &Path,
        opening: Opening,
        now: Now,
    ) -> Result<(Self, Recovery), JournalError> {
        let Opening { origin, key_file, segment_bytes, content, recipe, detail } = opening;
        let mut options = Options::new(&origin.unwrap_or_else(host_origin));
        options.key_file = key_file;
        options.segment_bytes = segment_bytes.unwrap_or(options.segment_bytes);
        let (log, recovery) = Log::open(directory, options)?;
        let digester = Digester::new(directory);
        let mut journal = Self {
            log,
            boot: boot_id(),
            digester,
            sealer: Sealer::new(directory),
            content,
            recipe: None,
            heads: Principals::default(),
            listed: 0,
            kernel: None,
            lost: 0,
            buffer: Vec::with_capacity(1024),
            outward: None,
            shipper: None,
            keeper: None,
            pruning: "",
            rolled_back: None,
        };
        journal.decide_by(recipe.as_deref());
        journal.read_heads(recovery.size)?;
        let mut detail = detail;
        detail.push(("end", if recovery.clean { "clean" } else { "unclean" }.to_owned()));
        detail.push(("recovered", (recovery.size - recovery.published).to_string()));
        detail.push(("last_durable", recovery.size.to_string()));
        for (file, offset) in &recovery.torn {
            detail.push(("torn", format!("{file} at byte {offset}")));
        }
        journal.event(now, Kind::AgentStart, &detail)?;
        journal.commit()?;
        Ok((journal, recovery))
    }

    /// Starts the background work: requests to witnesses, shipping of copies, pruning of old
    /// records.
    pub(crate) fn look_after(
        &mut self,
        evidence: &Evidence,
        metrics: &Arc<Metrics>,
    ) -> anyhow::Result<()> {
        let directory = self.log.directory().to_owned();
        if !evidence.witnesses.is_empty() {
            self.outward = Some(Outward::start(&directory, evidence.witnesses.clone())?);
        }
        if let Some(ship) = &evidence.ship {
            let state = directory.parent().unwrap_or(&directory).join("state/shipped.json");
            self.shipper = Some(Shipper::start(&directory, &state, ship.clone(), metrics)?);
        }
        self.keeper = Keeper::start(&directory, evidence.limits)?;
        Ok(())
    }

    /// Keeps the recipe in force beside the log; policy records name its digest. If the disk
    /// refuses the recipe, records name no digest, and recorded decisions cannot be made again.
    pub(crate) fn decide_by(&mut self, recipe: Option<&[u8]>) {
        let kept = recipe.and_then(|recipe| self.log.keep(recipe).ok());
        self.recipe = kept.map(|digest| sha256_text(&digest));
    }

    /// Sets the amount of prompt content recorded from here on.
    pub(crate) fn set_content(&mut self, content: Content) {
        self.content = content;
    }

    /// Sets the kernel's counters: verdicts and events made, and verdicts and events lost. Every
    /// later record carries both.
    pub(crate) fn set_kernel_counters(&mut self, made: u64, lost: u64) {
        self.kernel = Some((made, lost));
    }

    /// Appends a record of the engine; returns the index.
    pub(crate) fn record(&mut self, record: &Record) -> Result<u64, AppendError> {
        // The journal counts by `Self::folded`.
        let Record { at, kind, awu, who, what, inputs, decision, accounts, times: _, detail } =
            record;
        let mut cut = Cut(false);
        let awu_text = awu.map(|awu| awu.to_string());
        let human = who.as_ref().and_then(|who| who.attribution.accountable.as_deref());
        let human = human.map(|human| self.digester.digest("h", human, at.unix_ns));
        let mut entry = self.blank(*at, (*kind).into());
        entry.awu = awu_text.map(Text::from);
        entry.who = who.as_ref().map(|who| convert_who(who, human, &mut cut));
        entry.what = what.as_ref().map(|what| convert_what(what, &mut cut));
        entry.inputs = inputs.as_ref().map(|inputs| convert_inputs(inputs, &mut cut));
        entry.dec = decision.as_ref().map(|decided| convert_decided(decided, &mut cut));
        entry.bud =
            cut.list(accounts).iter().map(|account| convert_account(account, &mut cut)).collect();
        entry.det = convert_detail(detail, &mut cut);
        if *kind == RecordKind::PolicyLoaded
            && let Some(recipe) = &self.recipe
        {
            entry.det.insert("config".into(), recipe.clone().into());
        }
        let texts = inputs.as_ref().map(|inputs| &inputs.texts).filter(|it| !it.texts.is_empty());
        if let Some(texts) = texts.filter(|_| self.content != Content::None) {
            let digest = self.digester.digest_texts(&texts.texts, at.unix_ns);
            entry.dig = Some(digest.into());
        }
        entry.cut = cut.0;
        let index = self.append(entry)?;
        if let (Some(texts), Some(awu), Content::Full) = (texts, awu, self.content) {
            self.seal(*at, &awu.to_string(), texts)?;
        }
        Ok(index)
    }

    /// Records the content sent to the model, encrypted.
    fn seal(&mut self, at: Now, awu: &str, texts: &Texts) -> Result<(), AppendError> {
        let Texts { texts, left_out_bytes } = texts;
        let parts = self.sealer.seal(awu, texts, *left_out_bytes, at.unix_ns);
        let Some(parts) = parts else {
            return self.event(at, Kind::Gap, &[("why", NO_KEY.to_owned())]).map(|_| ());
        };
        for part in parts {
            let mut entry = self.blank(at, Kind::Content);
            entry.awu = Some(awu.to_owned().into());
            entry.seal = Some(part);
            self.append(entry)?;
        }
        Ok(())
    }

    /// Appends a folded record, counting similar decisions; returns the index.
    pub(crate) fn folded(&mut self, at: Now, folded: &Folded) -> Result<u64, AppendError> {
        let Folded { who, what, decision, user, count, first_unix_ns, last_unix_ns } = folded;
        let mut cut = Cut(false);
        let human = who.as_ref().and_then(|who| who.attribution.accountable.as_deref());
        let human = human.map(|human| self.digester.digest("h", human, at.unix_ns));
        let mut entry = self.blank(at, Kind::Folded);
        entry.who = who.as_ref().map(|who| convert_who(who, human, &mut cut));
        entry.what = what.as_ref().map(|what| convert_what(what, &mut cut));
        entry.dec = Some(convert_decided(decision, &mut cut));
        entry.fold = Some(Count { n: *count, first: *first_unix_ns, last: *last_unix_ns });
        let uid = user.as_ref().and_then(|it| it.uid).map(|it| it.to_string());
        let place = user.as_ref().and_then(|it| it.place.as_ref());
        entry.det.extend(uid.map(|it| ("uid".into(), it.into())));
        entry.det.extend(place.map(|it| ("place".into(), cut.text(it))));
        entry.cut = cut.0;
        self.append(entry)
    }

    /// Appends a record about the agent itself; returns the index.
    pub(crate) fn event(
        &mut self,
        now: Now,
        kind: Kind,
        detail: &[(&'static str, String)],
    ) -> Result<u64, AppendError> {
        let mut cut = Cut(false);
        let mut entry = self.blank(now, kind);
        entry.det = convert_detail(detail, &mut cut);
        entry.cut = cut.0;
        self.append(entry)
    }

    /// Records the balance of every budget: at a start as the accounts' file says, at a stop as the
    /// agent leaves the accounts. `lost`: the reason for failing to read the file.
    pub(crate) fn balances(
        &mut self,
        now: Now,
        at: Moment,
        ledger: &Ledger,
        lost: Option<&str>,
    ) -> Result<(), AppendError> {
        let standing = |(key, account): (&AccountKey, &Account)| {
            let unit = unit_text(account.unit);
            let (given, used) = (account.allocated(), account.consumed());
            Standing(
                key.name().into(),
                account.period.clone().into(),
                unit.into(),
                given,
                account.reserved,
                used,
            )
        };
        let all: Vec<_> = ledger.accounts().map(standing).collect();
        let mut parts: Vec<_> = all.chunks(BALANCES_LIMIT).map(<[_]>::to_vec).collect();
        if parts.is_empty() {
            parts.push(Vec::new());
        }
        let of = parts.len() as u64;
        for (part, list) in (0..).zip(parts) {
            let mut entry = self.blank(now, Kind::Balances);
            entry.bal = Some(Balances { part, parts: of, led: ledger.sequence(), list });
            entry.det.insert("at".into(), at.as_str().into());
            if let Some(why) = lost {
                entry.det.insert("lost".into(), Cut(false).text(why));
            }
            self.append(entry)?;
        }
        Ok(())
    }

    /// Makes all appended records durable; returns the number of newly durable records.
    pub(crate) fn commit(&mut self) -> Result<u64, CommitError> {
        if let Some(why) = &self.rolled_back {
            return Err(CommitError::Io(io::Error::other(why.clone())));
        }
        let before = self.log.durable();
        self.log.commit()?;
        Ok(self.log.durable() - before)
    }

    /// Tells whether so many records wait to become durable that a large record may find no room.
    pub(crate) fn is_crowded(&self) -> bool {
        self.log.is_crowded()
    }

    /// Tells whether an appended record is not durable yet.
    pub(crate) fn waits(&self) -> bool {
        self.log.next_index() > self.log.durable()
    }

    /// Lets checkpoints keep pace; to be called at least each second. Never waits for the disk.
    pub(crate) fn tick(&mut self, now: Now) -> Result<Option<Checkpoint>, PublishError> {
        if self.log.next_index() - self.listed >= HEADS_EVERY {
            // If the log refuses the list now, the next tick tries again.
            if self.write_heads(now).is_ok() {
                self.listed = self.log.next_index();
            }
        }
        while let Some(news) = self.outward.as_ref().and_then(Outward::news) {
            self.learn(now, news);
        }
        while let Some(news) = self.shipper.as_ref().and_then(Shipper::news) {
            self.learn_of_copies(now, news);
        }
        self.keep_within_limits(now);
        match &self.rolled_back {
            Some(why) => Err(PublishError(why.clone())),
            None => self.log.tick(now.unix_ns / 1_000_000),
        }
    }

    /// Prunes records beyond the limits of age or size, and records the pruning.
    fn keep_within_limits(&mut self, now: Now) {
        if let Some(due) = self.keeper.as_ref().and_then(Keeper::due) {
            // Records not shipped yet stay.
            let below = self.shipper.as_ref().map_or(due.below, |it| due.below.min(it.shipped()));
            // The numbers of principals with pruned records must be kept elsewhere.
            if below > due.first && self.write_heads(now).is_ok() && self.log.prune_later(below) {
                self.pruning = due.why;
            }
        }
        if let Some(first) = self.log.pruned() {
            let detail = [("first", first.to_string()), ("why", self.pruning.to_owned())];
            // If the log refuses the event, the next record tells of a missing record.
            self.event(now, Kind::Retention, &detail).map(|_| ()).unwrap_or_default();
        }
    }

    /// Records the outcome of shipping copies.
    fn learn_of_copies(&mut self, now: Now, news: ship::News) {
        let (state, why) = match news {
            ship::News::Failed(why) => ("failed", Some(why)),
            ship::News::Refused(why) => ("refused", Some(why)),
            ship::News::Resumed => ("resumed", None),
        };
        let mut detail = vec![("state", state.to_owned())];
        detail.extend(why.map(|why| ("why", why)));
        // If the log refuses the event, the next record tells of a missing record.
        self.event(now, Kind::Shipping, &detail).map(|_| ()).unwrap_or_default();
    }

    /// Records the answers of witnesses. After a rollback nothing is made durable or signed any
    /// more; `evidence.on_failure` then determines the behavior.
    fn learn(&mut self, now: Now, news: News) {
        let (kind, detail) = match news {
            News::Cosigned { witness, checkpoint } => {
                let note = checkpoint.note.to_string();
                (Kind::Witnessed, vec![("witness", witness), ("note", note)])
            }
            News::Unreachable { witness, why } => {
                (Kind::WitnessUnreachable, vec![("witness", witness), ("why", why)])
            }
            News::RolledBack { witness, why } => {
                self.rolled_back = Some(format!("x_evidence_rollback: witness {witness}: {why}"));
                return;
            }
        };
        if self.event(now, kind, &detail).is_err() {
            // The event counts as lost, and the next accepted record says so.
        }
    }

    /// Records the stop and closes the log properly.
    pub(crate) fn close(mut self, now: Now) -> Result<Checkpoint, PublishError> {
        let failed = |error: AppendError| PublishError(error.to_string());
        self.write_heads(now).map_err(failed)?;
        self.event(now, Kind::AgentStop, &[]).map_err(failed)?;
        let checkpoint = self.log.close()?;
        if let Some(shipper) = self.shipper {
            shipper.finish();
        }
        Ok(checkpoint)
    }

    /// Signs with a new key from here on, generated or given, and records the change.
    pub(crate) fn rotate_key(&mut self, now: Now, to: Option<&Path>) -> Result<(), PublishError> {
        let key = match to {
            None => self.log.rotate_key()?,
            Some(file) => self.log.rotate_key_to(file)?,
        };
        self.event(now, Kind::KeyRotated, &[("key", key.to_string())])
            .map_err(|error| PublishError(error.to_string()))?;
        Ok(())
    }

    /// Prunes the bytes of the records below `below`, in whole bundles, and records the pruning;
    /// returns the first kept index.
    pub(crate) fn prune(&mut self, now: Now, below: u64) -> Result<u64, PublishError> {
        let first = self.log.prune(below)?;
        self.event(now, Kind::Retention, &[("first", first.to_string())])
            .map_err(|error| PublishError(error.to_string()))?;
        Ok(first)
    }

    fn blank(&self, at: Now, kind: Kind) -> Entry<'static> {
        Entry {
            v: VERSION,
            seq: 0,
            kseq: self.kernel.map(|(made, _)| made),
            drops: self.kernel.map(|(_, lost)| lost),
            t: at.unix_ns,
            mono: at.mono_ns,
            boot: Text::from(self.boot.clone()),
            kind,
            awu: None,
            who: None,
            what: None,
            inputs: None,
            dec: None,
            fold: None,
            bud: Vec::new(),
            dig: None,
            seal: None,
            heads: None,
            bal: None,
            det: BTreeMap::new(),
            cut: false,
        }
    }

    /// Numbers and appends the record; a gap record of lost records goes first.
    fn append(&mut self, entry: Entry<'_>) -> Result<u64, AppendError> {
        if self.lost > 0 {
            let mut gap = self.blank(Now { mono_ns: entry.mono, unix_ns: entry.t }, Kind::Gap);
            let lost = self.lost.to_string();
            gap.det.insert("records".into(), lost.into());
            gap.det.insert("why".into(), "the disk did not take evidence".into());
            if self.number_and_append(gap).is_ok() {
                self.lost = 0;
            }
        }
        let result = self.number_and_append(entry);
        self.lost += u64::from(result.is_err());
        result
    }

    fn number_and_append(&mut self, mut entry: Entry<'_>) -> Result<u64, AppendError> {
        let seq = self.log.next_index();
        entry.seq = seq;
        let mut number = None;
        if let Some(who) = &mut entry.who {
            number = self.heads.next(who);
            who.pseq = number.map(|(count, _)| count);
            who.pprev = number.and_then(|(_, last)| last);
        }
        self.buffer.clear();
        if serde_json::to_writer(&mut self.buffer, &entry).is_err() {
            return Err(AppendError::Length(0));
        }
        let index = self.log.append(&self.buffer)?;
        if let (Some(who), Some((count, _))) = (&entry.who, number) {
            self.heads.note(who, count, index);
        }
        Ok(index)
    }

    /// Writes the newest record of every principal, so that a start need not read the whole log.
    fn write_heads(&mut self, now: Now) -> Result<(), AppendError> {
        let mut parts: Vec<Vec<Head<'static>>> = Vec::new();
        let mut bytes = usize::MAX;
        for head in self.heads.list() {
            if bytes > HEADS_BYTES {
                parts.push(Vec::new());
                bytes = 0;
            }
            bytes += head.0.as_str().len() + head.3.as_ref().map_or(0, |it| it.as_str().len()) + 52;
            if let Some(part) = parts.last_mut() {
                part.push(head);
            }
        }
        let of = parts.len() as u64;
        for (number, list) in (0..).zip(parts) {
            let mut entry = self.blank(now, Kind::Heads);
            entry.heads = Some(Heads { part: number, parts: of, list });
            if let Some(recipe) = &self.recipe {
                entry.det.insert("config".into(), recipe.clone().into());
            }
            self.append(entry)?;
        }
        Ok(())
    }

    /// Finds the newest record of every principal in a log of `size` records.
    fn read_heads(&mut self, size: u64) -> Result<(), ReadError> {
        let directory = Directory::new(self.log.directory());
        let kept = directory.first_kept()?;
        let mut from = size;
        // Backwards, a bundle at a time, to the last complete list of principals.
        while from > kept && size - from < 4 * HEADS_EVERY {
            let to = from;
            from = (from.saturating_sub(1) / 256 * 256).max(kept);
            let mut parts: Vec<(u64, u64, u64)> = Vec::new();
            directory.records(from, to.max(from), |index, record| {
                if let Ok(Entry { heads: Some(Heads { part, parts: of, .. }), .. }) =
                    serde_json::from_slice(record)
                {
                    parts.push((index, part, of));
                }
            })?;
            if let Some((index, _, _)) = parts.iter().rfind(|(_, part, _)| *part == 0) {
                from = *index;
                if self.follow(&directory, from, size)? {
                    return Ok(());
                }
                from = from.saturating_sub(1);
            }
        }
        self.heads.clear();
        self.follow(&directory, kept, size).map(|_| ())
    }

    /// Reads the records from `from` on. True if a complete list of principals comes first.
    fn follow(&mut self, directory: &Directory, from: u64, size: u64) -> Result<bool, ReadError> {
        self.heads.clear();
        let mut complete = None;
        let mut in_list = true;
        let (heads, listed) = (&mut self.heads, &mut self.listed);
        directory.records(from, size, |index, record| {
            let Ok(entry) = serde_json::from_slice::<Entry<'_>>(record) else { return };
            if let Some(Heads { part, parts, list }) = entry.heads {
                if in_list {
                    let whole = part == index - from;
                    complete = Some(whole && part + 1 == parts);
                }
                *listed = index + 1;
                for head in &list {
                    heads.take(head);
                }
            } else {
                in_list = false;
            }
            if let Some(who) = &entry.who
                && let Some(pseq) = who.pseq
            {
                heads.note(who, pseq, index);
            }
        })?;
        Ok(complete == Some(true))
    }
}

/// Whether a text or a list had to be cut.
struct Cut(bool);

impl Cut {
    fn text<'a>(&mut self, text: &'a str) -> Text<'a> {
        let kept = text.get(..text.floor_char_boundary(TEXT_LIMIT)).unwrap_or(text);
        self.0 |= kept.len() < text.len();
        kept.into()
    }

    fn maybe<'a>(&mut self, text: Option<&'a String>) -> Option<Text<'a>> {
        text.map(|text| self.text(text))
    }

    fn list<'a, T>(&mut self, list: &'a [T]) -> &'a [T] {
        self.0 |= list.len() > LIST_LIMIT;
        list.get(..LIST_LIMIT).unwrap_or(list)
    }

    fn texts<'a>(&mut self, list: &'a [String]) -> Vec<Text<'a>> {
        self.list(list).iter().map(|text| self.text(text)).collect()
    }
}

impl From<RecordKind> for Kind {
    fn from(kind: RecordKind) -> Self {
        match kind {
            RecordKind::Intent => Self::Intent,
            RecordKind::Breach => Self::Breach,
            RecordKind::Decision => Self::Decision,
            RecordKind::Reservation => Self::Reservation,
            RecordKind::Reconciliation => Self::Reconciliation,
            RecordKind::Release => Self::Release,
            RecordKind::PolicyLoaded => Self::PolicyLoaded,
            RecordKind::PolicyRefused => Self::PolicyRefused,
            RecordKind::PriceLoaded => Self::PriceLoaded,
            RecordKind::ModeChange => Self::ModeChange,
            RecordKind::Gap => Self::Gap,
            RecordKind::Grant => Self::Grant,
            RecordKind::Revoke => Self::Revoke,
            RecordKind::Approval => Self::Approval,
            RecordKind::Override => Self::Override,
        }
    }
}

fn convert_who<'a>(
    who: &'a genops_governance::Who,
    human: Option<String>,
    cut: &mut Cut,
) -> Who<'a> {
    let genops_governance::Who {
        attribution,
        process,
        pid,
        exe,
        uid,
        user,
        systemd_unit,
        container_id,
        pod_uid,
        namespace,
        cgroup,
    } = who;
    let genops_governance::Attribution {
        principal,
        mapped,
        team,
        project,
        environment,
        cost_center,
        customer_id,
        feature,
        session_id,
        said,
        chain,
        accountable: _, // digested above
    } = attribution;
    Who {
        prin: cut.text(principal),
        pseq: None,
        pprev: None,
        mapped: *mapped,
        team: cut.maybe(team.as_ref()),
        proj: cut.maybe(project.as_ref()),
        env: cut.maybe(environment.as_ref()),
        cc: cut.maybe(cost_center.as_ref()),
        cust: cut.maybe(customer_id.as_ref()),
        feat: cut.maybe(feature.as_ref()),
        sess: cut.maybe(session_id.as_ref()),
        said: cut.texts(said),
        chain: cut.texts(chain),
        human: human.map(Text::from),
        pid: process.map(|process| process.pid).or(*pid),
        start: process.map(|process| process.start_ns),
        exe: cut.maybe(exe.as_ref()),
        uid: uid.filter(|_| user.is_none()),
        user: cut.maybe(user.as_ref()),
        unit: cut.maybe(systemd_unit.as_ref()),
        ctr: cut.maybe(container_id.as_ref()),
        pod: cut.maybe(pod_uid.as_ref()),
        ns: cut.maybe(namespace.as_ref()),
        cg: cut.maybe(cgroup.as_ref()),
    }
}

fn convert_what<'a>(what: &'a genops_governance::What, cut: &mut Cut) -> What<'a> {
    let genops_governance::What {
        operation,
        operation_type,
        provider,
        model,
        region,
        server,
        api,
        capture,
        mechanism,
    } = what;
    What {
        op: cut.maybe(operation.as_ref()),
        kind: (*operation_type).into(),
        prov: cut.maybe(provider.as_ref()),
        model: cut.maybe(model.as_ref()),
        region: cut.maybe(region.as_ref()),
        server: cut.maybe(server.as_ref()),
        api: api.map(Text::from),
        conf: capture.as_str().into(),
        mechanism: mechanism.as_str().into(),
    }
}

fn convert_inputs<'a>(inputs: &'a genops_governance::Inputs, cut: &mut Cut) -> Inputs<'a> {
    let genops_governance::Inputs {
        input_tokens,
        output_tokens,
        nano_usd,
        worst_nano_usd,
        compute_ns,
        request_bytes,
        complete,
        content,
        approval,
        bytes_before_decision,
        seen,
        texts: _, // digested or encrypted elsewhere
    } = inputs;
    let genops_governance::Seen {
        preventable,
        settled,
        early,
        stream,
        p95_latency_ms,
        slow,
        failed,
        limits,
        budgets,
    } = seen;
    Inputs {
        tok_in: *input_tokens,
        tok_out: *output_tokens,
        cost: *nano_usd,
        worst: *worst_nano_usd,
        time: *compute_ns,
        bytes: *request_bytes,
        whole: *complete,
        content: cut.texts(content),
        appr: cut.maybe(approval.as_ref()),
        left: *bytes_before_decision,
        stop: *preventable,
        after: settled.as_ref().map(|code| code.as_str().into()),
        early: *early,
        stream: *stream,
        p95: *p95_latency_ms,
        slow: *slow,
        failed: *failed,
        lim: cut
            .list(limits)
            .iter()
            .map(|it| Metered(cut.text(&it.limit), it.ahead_ns, it.running))
            .collect(),
        had: cut
            .list(budgets)
            .iter()
            .map(|it| Had(cut.text(&it.budget), it.allocated, it.remaining))
            .collect(),
    }
}

fn convert_decided<'a>(decided: &'a genops_governance::Decided, cut: &mut Cut) -> Decided<'a> {
    let genops_governance::Decided {
        result,
        reason,
        policy,
        matched,
        policy_hash,
        epoch,
        prevented,
    } = decided;
    Decided {
        result: result.as_str().into(),
        code: reason.as_ref().map(|reason| reason.as_str().into()),
        policy: cut.maybe(policy.as_ref()),
        matched: cut.texts(matched),
        bundle: sha256_text(policy_hash).into(),
        epoch: *epoch,
        prevented: *prevented,
    }
}

fn convert_account<'a>(account: &'a genops_governance::Accounted, cut: &mut Cut) -> Accounted<'a> {
    let genops_governance::Accounted {
        budget,
        period,
        unit,
        reserved,
        actual,
        remaining,
        incomplete,
        price_hash,
        ledger_sequence,
    } = account;
    Accounted {
        name: cut.maybe(budget.as_ref()),
        period: cut.maybe(period.as_ref()),
        unit: unit_text(*unit).into(),
        res: *reserved,
        act: *actual,
        rem: *remaining,
        inc: *incomplete,
        price: sha256_text(price_hash).into(),
        led: *ledger_sequence,
    }
}

/// Spells a unit as in records.
fn unit_text(unit: Unit) -> &'static str {
    match unit {
        Unit::Usd => "nUSD",
        Unit::Tokens => "tokens",
        Unit::ComputeSeconds => "ns",
    }
}

fn convert_detail<'a>(
    detail: &'a [(&'static str, String)],
    cut: &mut Cut,
) -> BTreeMap<Text<'a>, Text<'a>> {
    cut.list(detail).iter().map(|(key, value)| ((*key).into(), cut.text(value))).collect()
}

/// `sha256:` and 64 hexadecimal digits.
pub(crate) fn sha256_text(hash: &[u8; 32]) -> String {
    format!("sha256:{}", hex(hash))
}

/// Identifies the boot of the host: 16 hexadecimal digits of the kernel's boot id.
fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.chars().filter(char::is_ascii_hexdigit).take(16).collect()
}

/// Identity of a log without a configured origin: the host's name, and digits derived from the
/// machine id. The machine id itself is not shown.
fn host_origin() -> String {
    use sha2::Digest as _;
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '-' })
        .collect();
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let digest = sha2::Sha256::new()
        .chain_update("genops evidence origin\n")
        .chain_update(machine.trim())
        .chain_update(&name)
        .finalize();
    let digits: String = hex(&digest).chars().take(16).collect();
    format!("genops.local/{name}/{digits}")
}

#[cfg(test)]
mod tests;
