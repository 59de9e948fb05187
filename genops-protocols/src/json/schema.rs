//! Wanted values of a JSON text: paths, compiled into a tree.
//!
//! A path is written `choices.*.delta.role`: names of keys, `*` for any element of an array. A path
//! ending in `.**` wants every string below as prose, except under keys without prose.

use std::cmp::Ordering;
use std::collections::HashMap;

use crate::facts::{Field, List};

/// Action for the value at a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Want {
    #[default]
    Nothing,
    /// Kept as a fact; the last value counts. Of an object or array, only the presence is kept.
    Keep(Field),
    /// Text for content policy.
    Prose,
    /// Text for content policy, and a claim, by index in [`crate::claims::BODY_PATHS`].
    Claim(u8),
    /// Text for content policy, with the presence kept as a fact.
    ProseAnd(Field),
    /// Every string is appended to a list.
    Append(List),
    /// An object grouping [`Want::Slot`]s: a choice of the response.
    Choice,
    /// An object grouping [`Want::Slot`]s: a tool call or other item.
    Item(List),
    /// A value of the surrounding object.
    Slot(Slot),
    /// Text written by a model: only the length counts. Events with no other difference state the
    /// same facts.
    Written,
    /// A number added to the earlier numbers.
    Add(Field),
    /// An object with the tokens of a single sort: a modality, or a lifetime of cached tokens.
    Split(Split),
    /// A string holding base64 of a JSON text of the same schema.
    Base64,
}

/// Values of a [`Want::Choice`] or [`Want::Item`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Slot {
    ChoiceIndex,
    Index,
    Reason,
    Type,
    Name,
    Id,
    /// Action of a tool run by the provider.
    Action,
    /// Tokens of a [`Want::Split`].
    Count,
}

/// Total divided by a [`Want::Split`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Split {
    Input,
    Output,
    CacheRead,
    CacheWrite,
}

/// A node of the tree.
pub(crate) type NodeId = u16;

/// Nothing is wanted here or below.
pub(crate) const NONE: NodeId = 0;
/// Every string here and below is prose.
pub(crate) const DEEP: NodeId = 1;
/// The text itself.
pub(crate) const ROOT: NodeId = 2;

/// Keys without prose below a prose path: identifiers, types, and data coded by the provider. Keys
/// able to carry text of the sender are not listed.
const NEVER_PROSE: &[&str] = &[
    "cache_control",
    "call_id",
    "detail",
    "encrypted_content",
    "file_id",
    "format",
    "id",
    "media_type",
    "mimeType",
    "mime_type",
    "role",
    "signature",
    "status",
    "thoughtSignature",
    "thought_signature",
    "tool_call_id",
    "tool_use_id",
    "toolUseId",
    "type",
];

#[derive(Debug, Default)]
struct Node {
    want: Want,
    /// Sorted by length, then name: most names differ in length, and lengths are cheaper to
    /// compare.
    keys: Vec<(&'static str, NodeId)>,
    element: NodeId,
    deep: bool,
}

/// Compiled paths.
#[derive(Debug)]
pub(crate) struct Schema {
    nodes: Vec<Node>,
}

impl Schema {
    /// Compiles `paths`. The elements of an outermost array count as separate texts.
    ///
    /// # Panics
    ///
    /// If two lines want different things of the same path: a mistake in the tables of the crate.
    pub(crate) fn new(paths: impl Iterator<Item = (&'static str, Want)>) -> Self {
        let mut nodes: Vec<Node> = (0..=ROOT).map(|_| Node::default()).collect();
        let mut seen: HashMap<&str, Want> = HashMap::new();
        for (path, want) in paths {
            if let Some(other) = seen.insert(path, want) {
                assert_eq!(other, want, "`{path}` is wanted twice");
                continue;
            }
            insert(&mut nodes, path, want);
        }
        for node in &mut nodes {
            node.keys.sort_unstable_by_key(|&(name, _)| (name.len(), name));
        }
        if let Some(root) = nodes.get_mut(usize::from(ROOT)) {
            root.element = ROOT;
        }
        Self { nodes }
    }

    fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(usize::from(id))
    }

    pub(crate) fn want(&self, id: NodeId) -> Want {
        match id {
            NONE => Want::Nothing,
            DEEP => Want::Prose,
            _ => self.node(id).map_or(Want::Nothing, |node| node.want),
        }
    }

    pub(crate) fn element(&self, id: NodeId) -> NodeId {
        match id {
            NONE => NONE,
            DEEP => DEEP,
            _ => self.node(id).map_or(NONE, |node| node.below(node.element)),
        }
    }

    /// Returns whether an unwanted key equals a wanted key for a reader ignoring case. Go's reader
    /// ignores case, and takes U+017F for `s` and U+212A for `k`.
    pub(crate) fn differs_in_case(&self, id: NodeId, key: &[u8]) -> bool {
        let mut plain = [0_u8; 64];
        let (mut len, mut at) = (0, 0);
        while let Some(rest) = key.get(at..).filter(|rest| !rest.is_empty()) {
            let (byte, used) = match rest {
                [0xc5, 0xbf, ..] => (b's', 2),
                [0xe2, 0x84, 0xaa, ..] => (b'k', 3),
                [byte, ..] => (*byte, 1),
                [] => return false,
            };
            let Some(slot) = plain.get_mut(len) else { return false };
            *slot = byte;
            (len, at) = (len + 1, at + used);
        }
        let key = plain.get(..len).unwrap_or_default();
        let names = self.node(id).map(|node| node.keys.as_slice()).unwrap_or_default();
        names.iter().any(|(name, _)| name.as_bytes().eq_ignore_ascii_case(key))
    }

    pub(crate) fn child(&self, id: NodeId, key: &[u8]) -> NodeId {
        match id {
            NONE => NONE,
            DEEP => prose_below(key),
            _ => self.node(id).map_or(NONE, |node| {
                match node.keys.binary_search_by(|(name, _)| by_length(name.as_bytes(), key)) {
                    Ok(at) => node.keys.get(at).map_or(NONE, |&(_, id)| id),
                    Err(_) if node.deep => prose_below(key),
                    Err(_) => NONE,
                }
            }),
        }
    }
}

impl Node {
    fn below(&self, id: NodeId) -> NodeId {
        if id == NONE && self.deep { DEEP } else { id }
    }
}

fn by_length(name: &[u8], key: &[u8]) -> Ordering {
    name.len().cmp(&key.len()).then_with(|| name.cmp(key))
}

fn prose_below(key: &[u8]) -> NodeId {
    let never = NEVER_PROSE.iter().any(|name| name.as_bytes() == key);
    if never { NONE } else { DEEP }
}

fn insert(nodes: &mut Vec<Node>, path: &'static str, want: Want) {
    let (path, deep) = match path.strip_suffix(".**") {
        Some(path) => (path, true),
        None => (path, false),
    };
    let mut at = ROOT;
    for name in path.split('.') {
        let Some(node) = nodes.get(usize::from(at)) else { return };
        let known = if name == "*" {
            Some(node.element).filter(|&id| id != NONE)
        } else {
            node.keys.iter().find(|(key, _)| *key == name).map(|&(_, id)| id)
        };
        let id = known.unwrap_or_else(|| {
            let id = NodeId::try_from(nodes.len()).unwrap_or(NONE);
            nodes.push(Node::default());
            if let Some(node) = nodes.get_mut(usize::from(at)) {
                if name == "*" {
                    node.element = id;
                } else {
                    node.keys.push((name, id));
                }
            }
            id
        });
        at = id;
    }
    if let Some(node) = nodes.get_mut(usize::from(at)) {
        assert!(node.want == Want::Nothing || node.want == want, "`{path}` is wanted twice");
        node.want = want;
        node.deep |= deep;
    }
}
