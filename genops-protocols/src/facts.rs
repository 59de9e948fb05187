//! Facts found in a body: bounded in size, not yet judged by a dialect.
//!
//! Facts are kept by name, not by source; the dialect selects the facts of a call. Within a body
//! the last value counts, as in every JSON reader used by providers.

use crate::call::Texts;
use crate::claims::BODY_PATHS;
use crate::coding::base64::Base64;
use crate::json::schema::{Slot, Split, Want};
use crate::json::{Reader, Scalar, Scanner, Schema};

/// Name of a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Field {
    AlephInput,
    AlephOutput,
    AnthropicVersion,
    AudioCached,
    AudioInput,
    AudioOutput,
    AudioSeconds,
    Background,
    BestOf,
    BilledInput,
    BilledOutput,
    BlockReason,
    CacheRead,
    CacheWrite,
    CacheWriteHour,
    CacheWriteTokens,
    CachedTokens,
    CamelCacheRead,
    CamelCacheWrite,
    CamelInput,
    CamelOutput,
    CamelReason,
    CandidateCount,
    ChoiceCount,
    CitationTokens,
    ClientContent,
    CompletionTokens,
    Conversation,
    CountedInput,
    CountedOutput,
    Dimensions,
    Done,
    ErrorCode,
    ErrorStatus,
    ErrorType,
    EvalDuration,
    EvalOutput,
    EvalPrompt,
    FinalId,
    Fingerprint,
    FinishCode,
    FinishReason,
    FrequencyPenalty,
    GeneratedTokens,
    GenerationId,
    HasAssistant,
    HasCandidates,
    HasChoices,
    HasContent,
    HasContents,
    HasData,
    HasDocuments,
    HasEmbeddings,
    HasError,
    HasFile,
    HasGenerated,
    HasInput,
    HasInputText,
    HasInputs,
    HasInstances,
    HasIterations,
    HasMessage,
    HasMessages,
    HasNormalize,
    HasOutput,
    HasPrompt,
    HasQuery,
    HasRequests,
    HasResult,
    HasResults,
    HasRetrieval,
    HasSystem,
    HasTexts,
    HasTimings,
    HasUsage,
    HasVoice,
    Id,
    ImageCached,
    ImageInput,
    ImageOutput,
    IncompleteReason,
    InputTokens,
    IterationCacheRead,
    IterationCacheWrite,
    IterationCacheWriteHour,
    IterationInput,
    IterationOutput,
    Jsonrpc,
    LlamaOutput,
    LlamaPrompt,
    MaxCompletionTokens,
    MaxTokens,
    MetricCacheRead,
    MetricCacheWrite,
    MetricInput,
    MetricOutput,
    Model,
    ModelId,
    ModelVersion,
    ModelVersionName,
    Object,
    OutputFormat,
    OutputTokens,
    Pages,
    PredictedInput,
    PredictedOutput,
    PresencePenalty,
    PreviousResponse,
    PromptCount,
    PromptTokens,
    ProtocolVersion,
    Purpose,
    ReasoningLevel,
    ReasoningTokens,
    /// Part of the input lies at the provider.
    Referred,
    ResponseId,
    ResultReason,
    ReturnDocuments,
    RpcId,
    RpcMethod,
    RpcName,
    RpcUri,
    SearchUnits,
    Searches,
    Seed,
    ServerContent,
    ServiceTier,
    Status,
    StopReason,
    Stream,
    Temperature,
    ThoughtTokens,
    TitanInput,
    TitanOutput,
    ToolError,
    ToolPromptTokens,
    TopK,
    TopP,
    TotalTokens,
    /// Model transcribing the audio.
    Transcriber,
    TurnComplete,
    Type,
    Version,
    VideoInput,
    VideoOutput,
    WatsonxInput,
    WatsonxOutput,
}

/// Name of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum List {
    Stop,
    EncodingFormats,
    /// Tools called by the model.
    Tools,
    /// As [`List::Tools`], if only names are given.
    Names,
    /// Blocks of a message in their final form.
    Content,
    /// Items of an output in their final form.
    Output,
    /// Items of an output, announced singly by a stream.
    Announced,
    /// Methods of JSON-RPC messages.
    Methods,
    /// Finish reasons outside of choices.
    Reasons,
    /// Second kind of finish reason, given to a choice by some servers.
    ChoiceStops,
    /// Models allowed to answer instead of the requested model.
    Models,
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Count(u64),
    Number(f64),
    Flag(bool),
    Text(String),
    Present,
}

/// A set of fields.
#[derive(Clone, Copy, Default)]
struct Fields([u64; Self::WORDS]);

impl Fields {
    const WORDS: usize = Field::WatsonxOutput as usize / 64 + 1;

    fn has(self, field: Field) -> bool {
        let at = field as usize;
        self.0.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }

    fn add(&mut self, field: Field) {
        let at = field as usize;
        if let Some(word) = self.0.get_mut(at / 64) {
            *word |= 1 << (at % 64);
        }
    }
}

/// An item read by [`Want::Item`].
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Item {
    pub(crate) kind: Option<String>,
    pub(crate) name: Option<String>,
    /// Action of a tool run by the provider.
    pub(crate) action: Option<String>,
    id: Option<String>,
    index: Option<u64>,
    /// Tokens of a [`Want::Split`].
    count: Option<u64>,
}

/// Facts of a body.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "marks for several readers, and choices")]
pub(crate) struct Facts {
    values: Vec<(Field, Value)>,
    /// Fields with a value: dialects ask for many fields, and few have values.
    kept: Fields,
    lists: Vec<(List, String)>,
    items: Vec<(List, Item)>,
    /// Finish reason of each choice, by index.
    reasons: Vec<(u64, String)>,
    /// Current choice: position within the array, index, finish reason.
    choice: (u64, Option<u64>, Option<String>),
    item: Item,
    /// String being read.
    text: Vec<u8>,
    /// The text scanned so far added to a list or a sum: a second scan would add twice.
    appended: bool,
    /// A fact was kept since [`Self::take_changed`].
    changed: bool,
    /// A fact was kept since [`Self::take_dirty`].
    dirty: bool,
    /// The last [`Field::Type`] counts, not the first.
    last_type: bool,
    /// The last event of a stream came.
    over: bool,
    /// Bytes of text written by a model.
    written: u64,
    /// Naming two models is a fault, see [`Self::is_ambiguous`].
    one_model: bool,
    /// The model must be a text readable in a single way.
    strict_model: bool,
    ambiguous: bool,
    /// Claims of the request, by index of the path.
    claims: Vec<(u8, String)>,
}

impl std::fmt::Debug for Facts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Facts").field("count", &self.values.len()).finish_non_exhaustive()
    }
}

impl Facts {
    /// Maximum bytes of a kept string; the text of a longer string is dropped.
    pub(crate) const TEXT_LIMIT: usize = 512;
    /// Maximum number of entries of each list.
    const LIST_LIMIT: usize = 128;

    fn value(&self, field: Field) -> Option<&Value> {
        if !self.kept.has(field) {
            return None;
        }
        self.values.iter().find(|(known, _)| *known == field).map(|(_, value)| value)
    }

    pub(crate) fn has(&self, field: Field) -> bool {
        self.value(field).is_some()
    }

    pub(crate) fn text(&self, field: Field) -> Option<&str> {
        match self.value(field)? {
            Value::Text(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    /// Returns the value as a string, whether written as a string or as a number.
    pub(crate) fn written(&self, field: Field) -> Option<String> {
        match self.value(field)? {
            Value::Text(text) => Some(text.clone()).filter(|text| !text.is_empty()),
            Value::Count(count) => Some(count.to_string()),
            Value::Number(number) => Some(number.to_string()),
            Value::Flag(_) | Value::Present => None,
        }
    }

    pub(crate) fn count(&self, field: Field) -> Option<u64> {
        match self.value(field)? {
            Value::Count(count) => Some(*count),
            Value::Number(number) => whole(*number),
            Value::Text(text) => text.parse().ok(),
            Value::Flag(_) | Value::Present => None,
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a parameter beyond 2^53 is none")]
    pub(crate) fn number(&self, field: Field) -> Option<f64> {
        match self.value(field)? {
            Value::Count(count) => Some(*count as f64),
            Value::Number(number) => Some(*number),
            Value::Text(text) => text.parse().ok(),
            Value::Flag(_) | Value::Present => None,
        }
    }

    pub(crate) fn integer(&self, field: Field) -> Option<i64> {
        match self.value(field)? {
            Value::Count(count) => i64::try_from(*count).ok(),
            #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and in range")]
            Value::Number(number) => {
                (number.fract() == 0.0 && number.abs() < 9e15).then_some(*number as i64)
            }
            Value::Text(text) => text.parse().ok(),
            Value::Flag(_) | Value::Present => None,
        }
    }

    pub(crate) fn flag(&self, field: Field) -> Option<bool> {
        match self.value(field)? {
            Value::Flag(flag) => Some(*flag),
            Value::Text(text) => match text.as_str() {
                "true" => Some(true),
                "false" => Some(false),
                _ => None,
            },
            Value::Count(_) | Value::Number(_) | Value::Present => None,
        }
    }

    pub(crate) fn list(&self, list: List) -> impl Iterator<Item = &str> {
        self.lists.iter().filter(move |(of, _)| *of == list).map(|(_, text)| text.as_str())
    }

    pub(crate) fn items(&self, list: List) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(move |(of, _)| *of == list).map(|(_, item)| item)
    }

    /// Returns the finish reasons in order of the choices.
    pub(crate) fn reasons(&self) -> impl Iterator<Item = &str> {
        self.reasons.iter().map(|(_, reason)| reason.as_str())
    }

    /// Returns the value at a path of [`crate::claims::BODY_PATHS`].
    pub(crate) fn claim(&self, path: &str) -> Option<&str> {
        let is_it = |index: u8| BODY_PATHS.get(usize::from(index)) == Some(&path);
        let claim = self.claims.iter().find(|(it, _)| is_it(*it));
        claim.map(|(_, value)| value.as_str())
    }

    /// Keeps a claim; the last value of a path counts.
    fn keep_claim(&mut self, path: u8, value: &str) {
        self.touch();
        match self.claims.iter_mut().find(|(it, _)| *it == path) {
            Some((_, old)) => value.clone_into(old),
            None => self.claims.push((path, value.to_owned())),
        }
    }

    pub(crate) fn keep_text(&mut self, field: Field, text: &str) {
        self.keep(field, Value::Text(text.to_owned()));
    }

    pub(crate) fn keep_count(&mut self, field: Field, count: u64) {
        self.keep(field, Value::Count(count));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty() && self.lists.is_empty() && self.items.is_empty()
    }

    /// Returns whether a fact was kept since the last call.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// As [`Self::take_changed`], for the reader of the facts.
    pub(crate) fn take_dirty(&mut self) -> bool {
        std::mem::take(&mut self.dirty)
    }

    /// Returns whether the last event of a stream came.
    pub(crate) fn says_over(&self) -> bool {
        self.over
    }

    /// Returns the bytes of text written by a model.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written
    }

    pub(crate) fn count_written(&mut self, bytes: u64) {
        self.written = self.written.saturating_add(bytes);
    }

    /// Moves usage reported about other work to `to`. Returns false if no usage was reported.
    pub(crate) fn move_usage(&mut self, to: &mut Self) -> bool {
        let used = |(field, _): &&(Field, Value)| USED.contains(field);
        let told: Vec<_> = self.values.iter().filter(used).cloned().collect();
        self.drop_fields(&USED);
        self.touch();
        let any = !told.is_empty();
        for (field, value) in told {
            to.keep(field, value);
        }
        any
    }

    /// Takes a text, so a later text is known to be new.
    pub(crate) fn take_text(&mut self, field: Field) -> Option<String> {
        let text = self.text(field)?.to_owned();
        self.drop_fields(&[field]);
        Some(text)
    }

    pub(crate) fn keep_last_type(&mut self) {
        self.last_type = true;
    }

    /// Expects a single readable model, because the reader of the body takes a single model.
    pub(crate) fn expect_one_model(&mut self) {
        self.one_model = true;
        self.strict_model = true;
    }

    /// Expects readable models; several may follow each other.
    pub(crate) fn expect_readable_models(&mut self) {
        self.strict_model = true;
    }

    /// Returns whether the model is ambiguous: two models are named and readers differ in the
    /// choice, or the model is no readable text.
    pub(crate) fn is_ambiguous(&self) -> bool {
        self.ambiguous
    }

    fn touch(&mut self) {
        self.changed = true;
        self.dirty = true;
    }

    /// Returns whether a list or a sum grew since the last call.
    pub(crate) fn take_appended(&mut self) -> bool {
        std::mem::take(&mut self.appended)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let texts = self.values.iter().map(|(_, value)| match value {
            Value::Text(text) => text.capacity(),
            Value::Count(_) | Value::Number(_) | Value::Flag(_) | Value::Present => 0,
        });
        let lists = self.lists.iter().map(|(_, text)| text.capacity());
        let items = self.items.iter().map(|(_, item)| {
            let Item { kind, name, id, action, .. } = item;
            [kind, name, id, action].into_iter().flatten().map(String::capacity).sum()
        });
        let reasons = self.reasons.iter().map(|(_, reason)| reason.capacity());
        texts.chain(lists).chain(items).chain(reasons).sum::<usize>()
            + self.values.capacity() * size_of::<(Field, Value)>()
            + self.lists.capacity() * size_of::<(List, String)>()
            + self.items.capacity() * size_of::<(List, Item)>()
            + self.reasons.capacity() * size_of::<(u64, String)>()
            + self.claims.iter().map(|(_, text)| text.capacity()).sum::<usize>()
            + self.claims.capacity() * size_of::<(u8, String)>()
            + self.text.capacity()
    }

    fn keep(&mut self, field: Field, value: Value) {
        if let (Field::Type, Value::Text(name)) = (field, &value) {
            self.over |= LAST_EVENTS.contains(&name.as_str());
            if name == "error" {
                self.keep(Field::HasError, Value::Present);
            }
        }
        match self.values.iter_mut().find(|(known, _)| *known == field) {
            Some((_, old)) if *old == value => return,
            Some((_, old)) if field == Field::Model && self.one_model => {
                self.ambiguous = true;
                *old = value;
            }
            // The first id names the stream; some streams end with an event with a separate id.
            Some((_, Value::Text(old))) if field == Field::Id && !old.is_empty() => return,
            // An event with an empty text does not take an earlier text back.
            Some((_, Value::Text(old)))
                if !old.is_empty() && matches!(&value, Value::Text(new) if new.is_empty()) =>
            {
                return;
            }
            // The first type identifies a stream.
            Some(_) if field == Field::Type && !self.last_type => return,
            // Counted once; later events of a stream report zero.
            Some((_, Value::Count(old)))
                if field == Field::WatsonxInput
                    && matches!(value, Value::Count(new) if new < *old) =>
            {
                return;
            }
            Some((_, old)) => *old = value,
            None => {
                self.kept.add(field);
                self.values.push((field, value));
            }
        }
        self.touch();
    }

    /// Drops the values of some fields.
    fn drop_fields(&mut self, fields: &[Field]) {
        self.values.retain(|(field, _)| !fields.contains(field));
        self.kept = Fields::default();
        self.values.iter().for_each(|(field, _)| self.kept.add(*field));
    }

    pub(crate) fn append(&mut self, list: List, text: &str) {
        self.appended = true;
        self.touch();
        if !text.is_empty() && self.list(list).count() < Self::LIST_LIMIT {
            self.lists.push((list, text.to_owned()));
        }
    }

    /// Adds to the sum of a field.
    fn add(&mut self, field: Field, count: u64) {
        self.appended = true;
        let before = self.count(field).unwrap_or(0);
        self.keep(field, Value::Count(before.saturating_add(count)));
    }

    /// Restarts the sums at the start of a list: of two lists the last counts.
    fn restart_sums(&mut self) {
        self.drop_fields(&SUMMED);
    }

    fn end_split(&mut self, split: Split) {
        let Item { kind, count, .. } = std::mem::take(&mut self.item);
        let (Some(kind), Some(count)) = (kind, count) else { return };
        let field = match (split, kind.as_str()) {
            (Split::Input, "AUDIO" | "audio") => Field::AudioInput,
            (Split::Input, "IMAGE" | "DOCUMENT" | "image") => Field::ImageInput,
            (Split::Input, "VIDEO" | "video") => Field::VideoInput,
            (Split::Output, "AUDIO" | "audio") => Field::AudioOutput,
            (Split::Output, "IMAGE" | "image") => Field::ImageOutput,
            (Split::Output, "VIDEO" | "video") => Field::VideoOutput,
            (Split::CacheRead, "AUDIO" | "audio") => Field::AudioCached,
            (Split::CacheRead, "IMAGE" | "DOCUMENT" | "image") => Field::ImageCached,
            (Split::CacheWrite, "1h") => Field::CacheWriteHour,
            _ => return,
        };
        self.keep(field, Value::Count(count));
    }

    fn slot(&mut self, slot: Slot, text: Option<String>, count: Option<u64>) {
        match slot {
            Slot::ChoiceIndex => self.choice.1 = count,
            Slot::Index => self.item.index = count,
            Slot::Reason => self.choice.2 = text,
            Slot::Type => self.item.kind = text,
            Slot::Name => self.item.name = text,
            Slot::Id => self.item.id = text,
            Slot::Action => self.item.action = text,
            Slot::Count => self.item.count = count,
        }
    }

    fn end_choice(&mut self) {
        let (position, index, reason) = std::mem::take(&mut self.choice);
        self.choice.0 = position + 1;
        let Some(reason) = reason.filter(|reason| !reason.is_empty()) else { return };
        let index = index.unwrap_or(position);
        match self.reasons.binary_search_by_key(&index, |(index, _)| *index) {
            Ok(at) => {
                if let Some((_, old)) = self.reasons.get_mut(at) {
                    *old = reason;
                }
            }
            Err(at) if self.reasons.len() < Self::LIST_LIMIT => {
                self.reasons.insert(at, (index, reason));
            }
            Err(_) => {}
        }
        self.touch();
    }

    fn end_item(&mut self, list: List) {
        let item = std::mem::take(&mut self.item);
        if item.kind.is_none() && item.name.is_none() {
            return;
        }
        self.appended = true;
        self.touch();
        let same = |(of, old): &&mut (List, Item)| {
            *of == list
                && match (&item.id, &old.id) {
                    (Some(new), Some(old)) => new == old,
                    _ => item.index.is_some() && item.index == old.index,
                }
        };
        if let Some((_, old)) = self.items.iter_mut().find(same) {
            old.name = item.name.filter(|name| !name.is_empty()).or(old.name.take());
            old.kind = item.kind.or(old.kind.take());
            old.action = item.action.or(old.action.take());
        } else if self.items(list).count() < Self::LIST_LIMIT {
            self.items.push((list, item));
        }
    }

    /// Marks the model as ambiguous if a client names no readable text: too long, cut by a zero
    /// byte for some readers, or not a string.
    fn doubt_model(&mut self, want: Want) {
        self.ambiguous |= self.is_strict_of(want);
    }

    /// Returns whether the value is a model required to be a readable text.
    fn is_strict_of(&self, want: Want) -> bool {
        self.strict_model && matches!(want, Want::Keep(Field::Model | Field::ModelId))
    }

    fn end_string(&mut self) -> Option<String> {
        let text = std::mem::take(&mut self.text);
        let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text.len() <= Self::TEXT_LIMIT)
            .then(|| String::from_utf8(text).unwrap_or_else(|error| lossy(error.as_bytes())))
    }
}

/// Last events of streams.
const LAST_EVENTS: [&str; 8] = [
    "interaction.complete",
    "interaction.completed",
    "message-end",
    "message_stop",
    "response.completed",
    "response.done",
    "response.failed",
    "response.incomplete",
];

/// Fields summed up by [`Want::Add`].
const SUMMED: [Field; 5] = [
    Field::IterationCacheRead,
    Field::IterationCacheWrite,
    Field::IterationCacheWriteHour,
    Field::IterationInput,
    Field::IterationOutput,
];

/// Fields with the usage reported by an event.
const USED: [Field; 15] = [
    Field::AudioCached,
    Field::AudioInput,
    Field::AudioOutput,
    Field::AudioSeconds,
    Field::CacheWriteTokens,
    Field::CachedTokens,
    Field::CompletionTokens,
    Field::ImageCached,
    Field::ImageInput,
    Field::ImageOutput,
    Field::InputTokens,
    Field::OutputTokens,
    Field::PromptTokens,
    Field::ReasoningTokens,
    Field::TotalTokens,
];

fn whole(number: f64) -> Option<u64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be whole and in range"
    )]
    (number.fract() == 0.0 && (0.0..9e15).contains(&number)).then_some(number as u64)
}

fn parse_number(text: &str) -> Option<Value> {
    text.parse().map(Value::Count).ok().or_else(|| text.parse().map(Value::Number).ok())
}

/// Gathers facts from a scanner.
pub(crate) struct Gather<'a> {
    pub(crate) facts: &'a mut Facts,
    /// Destination of prose; `None` drops prose.
    pub(crate) texts: Option<&'a mut Texts>,
    /// Reader of [`Want::Base64`] strings.
    pub(crate) nested: Option<&'a mut Nested>,
}

/// Reader of JSON texts carried in base64 strings.
#[derive(Debug)]
pub(crate) struct Nested {
    base64: Base64,
    pub(crate) scanner: Scanner,
}

impl Nested {
    pub(crate) fn new(schema: &'static Schema) -> Self {
        Self { base64: Base64::default(), scanner: Scanner::new(schema) }
    }
}

impl Reader for Gather<'_> {
    fn text_begin(&mut self, want: Want) {
        match want {
            Want::Prose | Want::ProseAnd(_) | Want::Claim(_) => {
                if let Want::ProseAnd(field) = want {
                    self.facts.keep(field, Value::Present);
                }
                self.facts.text.clear();
                if let Some(texts) = &mut self.texts {
                    texts.begin();
                }
            }
            Want::Base64 => {
                if let Some(nested) = &mut self.nested {
                    nested.base64 = Base64::default();
                    nested.scanner.reset();
                }
            }
            _ => self.facts.text.clear(),
        }
    }

    fn text(&mut self, want: Want, piece: &[u8]) {
        match want {
            Want::Prose | Want::ProseAnd(_) => {
                if let Some(texts) = &mut self.texts {
                    texts.push(piece);
                }
            }
            Want::Base64 => {
                if let Some(nested) = &mut self.nested {
                    let mut inner = Gather {
                        facts: self.facts,
                        texts: self.texts.as_deref_mut(),
                        nested: None,
                    };
                    let Nested { base64, scanner } = &mut **nested;
                    base64.feed(piece, |bytes| scanner.feed(bytes, &mut inner));
                }
            }
            Want::Written => self.facts.count_written(piece.len() as u64),
            _ => {
                if let (Want::Claim(_), Some(texts)) = (want, &mut self.texts) {
                    texts.push(piece);
                }
                let room = (Facts::TEXT_LIMIT + 1).saturating_sub(self.facts.text.len());
                self.facts.text.extend_from_slice(piece.get(..room).unwrap_or(piece));
            }
        }
    }

    fn text_end(&mut self, want: Want) {
        match want {
            Want::Prose | Want::ProseAnd(_) => {
                if let Some(texts) = &mut self.texts {
                    texts.end();
                }
            }
            Want::Claim(path) => {
                if let Some(texts) = &mut self.texts {
                    texts.end();
                }
                if let Some(text) = self.facts.end_string() {
                    self.facts.keep_claim(path, &text);
                }
            }
            Want::Base64
            | Want::Nothing
            | Want::Choice
            | Want::Item(_)
            | Want::Written
            | Want::Add(_)
            | Want::Split(_) => {}
            Want::Keep(field) => {
                if let Some(text) = self.facts.end_string() {
                    if self.facts.is_strict_of(want) && text.contains(['\0', '\u{fffd}']) {
                        self.facts.ambiguous = true;
                    }
                    self.facts.keep(field, Value::Text(text));
                } else {
                    self.facts.doubt_model(want);
                    self.facts.keep(field, Value::Present);
                }
            }
            Want::Append(list) => {
                if let Some(text) = self.facts.end_string() {
                    self.facts.append(list, &text);
                }
            }
            Want::Slot(slot) => {
                let text = self.facts.end_string();
                let count = text.as_deref().and_then(|text| text.parse().ok());
                self.facts.slot(slot, text, count);
            }
        }
    }

    fn scalar(&mut self, want: Want, scalar: Scalar<'_>) {
        if scalar != Scalar::Null {
            self.facts.doubt_model(want);
        }
        match (want, scalar) {
            (Want::Keep(field) | Want::ProseAnd(field), Scalar::Number(text)) => {
                if let Some(value) = parse_number(text) {
                    self.facts.keep(field, value);
                }
            }
            (Want::Keep(field) | Want::ProseAnd(field), Scalar::Bool(flag)) => {
                self.facts.keep(field, Value::Flag(flag));
            }
            (Want::Claim(path), Scalar::Number(text)) => self.facts.keep_claim(path, text),
            (Want::Append(list), Scalar::Number(text)) => self.facts.append(list, text),
            (Want::Add(field), Scalar::Number(text)) => {
                if let Ok(count) = text.parse() {
                    self.facts.add(field, count);
                }
            }
            (Want::Slot(slot), Scalar::Number(text)) => {
                self.facts.slot(slot, Some(text.to_owned()), text.parse().ok());
            }
            (Want::Slot(slot), Scalar::Null) => self.facts.slot(slot, None, None),
            _ => {}
        }
    }

    fn enter(&mut self, want: Want) {
        self.facts.doubt_model(want);
        match want {
            Want::Keep(field) | Want::ProseAnd(field) => {
                self.facts.keep(field, Value::Present);
                self.facts.choice.0 = 0;
                if field == Field::HasIterations {
                    self.facts.restart_sums();
                }
            }
            Want::Choice => (self.facts.choice.1, self.facts.choice.2) = (None, None),
            Want::Item(_) | Want::Split(_) => self.facts.item = Item::default(),
            Want::Nothing
            | Want::Prose
            | Want::Claim(_)
            | Want::Append(_)
            | Want::Slot(_)
            | Want::Written
            | Want::Add(_)
            | Want::Base64 => {}
        }
    }

    fn leave(&mut self, want: Want) {
        match want {
            Want::Choice => self.facts.end_choice(),
            Want::Item(list) => self.facts.end_item(list),
            Want::Split(split) => self.facts.end_split(split),
            _ => {}
        }
    }
}
