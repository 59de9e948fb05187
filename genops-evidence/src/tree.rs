//! The Merkle tree of RFC 6962 section 2.1, built record by record, and its proofs.
//!
//! Hashes in, hashes out. The module does not know the storage of hashes: a prover passes a
//! function to find the hash of a complete subtree.

use sha2::{Digest as _, Sha256};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// Hashes in a full tile, and records in a full entry bundle.
pub const TILE_WIDTH: usize = 256;

/// Number of tree levels in a tile level.
pub const TILE_HEIGHT: u32 = 8;

/// Hash of a record.
#[must_use]
pub fn leaf_hash(record: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(record).finalize().into()
}

/// Hash of two subtrees.
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut both = [0_u8; 65];
    let (prefix, rest) = both.split_at_mut(1);
    prefix.fill(1);
    let (first, second) = rest.split_at_mut(32);
    first.copy_from_slice(left);
    second.copy_from_slice(right);
    Sha256::digest(both).into()
}

/// Hash of the tree without records.
#[must_use]
pub fn empty_hash() -> Hash {
    Sha256::digest([]).into()
}

/// A newly completed tile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FullTile {
    /// Tile level: 0 holds the hashes of records.
    pub level: u8,
    /// Position among the tiles of its level.
    pub index: u64,
    /// [`TILE_WIDTH`] hashes.
    pub hashes: Vec<Hash>,
}

/// The right edge of the tree: the state needed to add records and to compute the root.
#[derive(Clone, Debug, Default)]
pub struct Edge {
    size: u64,
    /// The incomplete tile of each level, lowest first; never full.
    levels: Vec<Vec<Hash>>,
}

impl Edge {
    /// Restores the edge of a tree of `size` records, from the incomplete tile of each level
    /// (lowest first). `None` if the widths do not fit the size.
    #[must_use]
    pub fn restore(size: u64, mut levels: Vec<Vec<Hash>>) -> Option<Self> {
        for (level, width) in partial_widths(size).into_iter().enumerate() {
            if levels.len() <= level {
                levels.push(Vec::new());
            }
            if levels.get(level).map(Vec::len) != Some(width) {
                return None;
            }
        }
        Some(Self { size, levels })
    }

    /// Returns the number of records.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the incomplete tile of each level, lowest first; some may be empty.
    #[must_use]
    pub fn partial_tiles(&self) -> &[Vec<Hash>] {
        &self.levels
    }

    /// Adds the hash of a record and hands over the completed tiles.
    pub fn push(&mut self, leaf: Hash, mut full: impl FnMut(FullTile)) {
        self.size += 1;
        let mut hash = leaf;
        let mut covered = self.size;
        for level in 0_u8.. {
            if self.levels.len() <= usize::from(level) {
                self.levels.push(Vec::with_capacity(TILE_WIDTH));
            }
            let Some(tile) = self.levels.get_mut(usize::from(level)) else { return };
            tile.push(hash);
            if tile.len() < TILE_WIDTH {
                return;
            }
            covered >>= TILE_HEIGHT;
            let hashes = std::mem::replace(tile, Vec::with_capacity(TILE_WIDTH));
            hash = subtree_root(&hashes);
            full(FullTile { level, index: covered - 1, hashes });
        }
    }

    /// Returns the root of the tree at its present size.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut right: Option<Hash> = None;
        for tile in &self.levels {
            let mut rest = tile.as_slice();
            while !rest.is_empty() {
                let width = 1_usize << rest.len().trailing_zeros();
                let (before, subtree) = rest.split_at(rest.len() - width);
                let root = subtree_root(subtree);
                right = Some(right.map_or(root, |right| node_hash(&root, &right)));
                rest = before;
            }
        }
        right.unwrap_or_else(empty_hash)
    }
}

/// Returns the width of the incomplete tile of each level in a tree of `size` records, lowest
/// first.
#[must_use]
pub fn partial_widths(size: u64) -> Vec<usize> {
    let mut widths = Vec::new();
    let mut covered = size;
    while covered > 0 {
        widths.push(usize::try_from(covered % TILE_WIDTH as u64).unwrap_or(0));
        covered >>= TILE_HEIGHT;
    }
    widths
}

/// Returns the root over a power of two of hashes.
#[must_use]
pub fn subtree_root(hashes: &[Hash]) -> Hash {
    let mut level = hashes.to_vec();
    while level.len() > 1 {
        let pairs = level.as_chunks::<2>().0;
        level = pairs.iter().map(|[left, right]| node_hash(left, right)).collect();
    }
    level.first().copied().unwrap_or_else(empty_hash)
}

/// Finds the hash of a complete subtree: the `index`-th subtree of `2^level` records.
pub trait Subtrees {
    /// Error for a hash not found.
    type Error;
    /// Returns the hash over records `index << level .. (index + 1) << level`.
    fn subtree(&mut self, level: u32, index: u64) -> Result<Hash, Self::Error>;
}

/// Returns the root over the records `from..to`; `from` is a multiple of the largest power of two
/// below the width, as in every range needed by a proof.
pub fn range_root<S: Subtrees>(subtrees: &mut S, from: u64, to: u64) -> Result<Hash, S::Error> {
    let width = to - from;
    if width == 0 {
        return Ok(empty_hash());
    }
    if width.is_power_of_two() {
        let level = width.trailing_zeros();
        return subtrees.subtree(level, from >> level);
    }
    let split = from + split_point(width);
    let left = range_root(subtrees, from, split)?;
    let right = range_root(subtrees, split, to)?;
    Ok(node_hash(&left, &right))
}

/// Returns the largest power of two smaller than `width`; `width` is at least 2.
fn split_point(width: u64) -> u64 {
    1 << (width - 1).ilog2()
}

/// Proves record `index` to be in the tree of `size` records: returns the hashes beside the path of
/// the record, from the leaf upwards.
pub fn prove_inclusion<S: Subtrees>(
    subtrees: &mut S,
    index: u64,
    size: u64,
) -> Result<Vec<Hash>, S::Error> {
    let (mut from, mut to) = (0, size);
    let mut path = Vec::new();
    while to - from > 1 {
        let split = from + split_point(to - from);
        if index < split {
            path.push(range_root(subtrees, split, to)?);
            to = split;
        } else {
            path.push(range_root(subtrees, from, split)?);
            from = split;
        }
    }
    path.reverse();
    Ok(path)
}

/// Returns the root of the tree of `size` records, given `leaf` as record `index` and a true
/// `proof` (RFC 9162 section 2.1.3.2). `None`: the proof has the wrong length for the place.
#[must_use]
pub fn root_of_inclusion(leaf: Hash, index: u64, size: u64, proof: &[Hash]) -> Option<Hash> {
    if index >= size {
        return None;
    }
    let (mut node, mut last) = (index, size - 1);
    let mut hash = leaf;
    for sibling in proof {
        if last == 0 {
            return None;
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    (last == 0).then_some(hash)
}

/// Proves the tree of `old` records to be a prefix of the tree of `new` (RFC 6962 section 2.1.2).
pub fn prove_consistency<S: Subtrees>(
    subtrees: &mut S,
    old: u64,
    new: u64,
) -> Result<Vec<Hash>, S::Error> {
    let (mut from, mut to) = (0, new);
    let mut proof = Vec::new();
    if old == 0 || old >= new {
        return Ok(proof);
    }
    // Down to the subtree with the same end as the old tree.
    while old != to {
        let split = from + split_point(to - from);
        if old <= split {
            proof.push(range_root(subtrees, split, to)?);
            to = split;
        } else {
            proof.push(range_root(subtrees, from, split)?);
            from = split;
        }
    }
    if from != 0 {
        proof.push(range_root(subtrees, from, to)?);
    }
    proof.reverse();
    Ok(proof)
}

/// Returns whether `proof` shows the tree (`old`, `old_root`) to be a prefix of (`new`, `new_root`)
/// (RFC 9162 section 2.1.4.2).
#[must_use]
pub fn is_consistent(
    (old, old_root): (u64, &Hash),
    (new, new_root): (u64, &Hash),
    proof: &[Hash],
) -> bool {
    if old > new {
        return false;
    }
    if old == new {
        return proof.is_empty() && old_root == new_root;
    }
    if old == 0 {
        return proof.is_empty() && *old_root == empty_hash();
    }
    let mut rest = proof.iter();
    let (mut node, mut last) = (old - 1, new - 1);
    while node & 1 == 1 {
        node >>= 1;
        last >>= 1;
    }
    let seed = if node == 0 { Some(old_root) } else { rest.next() };
    let Some(seed) = seed else { return false };
    let (mut old_hash, mut new_hash) = (*seed, *seed);
    for sibling in rest {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            old_hash = node_hash(sibling, &old_hash);
            new_hash = node_hash(sibling, &new_hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            new_hash = node_hash(&new_hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && old_hash == *old_root && new_hash == *new_root
}

#[cfg(test)]
mod tests;
