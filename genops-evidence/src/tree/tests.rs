#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use std::convert::Infallible;

use tlog_tiles::{HashReader, tlog};

use super::*;

/// A tree with all leaves known.
struct Leaves(Vec<Hash>);

impl Leaves {
    fn new(size: u64) -> Self {
        Self((0..size).map(|index| leaf_hash(&index.to_be_bytes())).collect())
    }
}

impl Subtrees for Leaves {
    type Error = Infallible;

    fn subtree(&mut self, level: u32, index: u64) -> Result<Hash, Infallible> {
        let from = usize::try_from(index << level).unwrap();
        Ok(subtree_root(&self.0[from..from + (1 << level)]))
    }
}

/// The hashes as kept by another implementation.
#[derive(Default)]
struct Stored(Vec<tlog::Hash>);

impl HashReader for Stored {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<tlog::Hash>, tlog::Error> {
        Ok(indexes.iter().map(|index| self.0[usize::try_from(*index).unwrap()]).collect())
    }
}

const SIZES: [u64; 14] = [1, 2, 3, 4, 5, 7, 8, 9, 255, 256, 257, 511, 513, 700];

#[test]
fn roots_and_proofs_are_those_of_another_implementation() {
    let mut stored = Stored::default();
    let mut edge = Edge::default();
    for index in 0..700_u64 {
        let record = index.to_be_bytes();
        let more = tlog::stored_hashes(index, &record, &stored).unwrap();
        stored.0.extend(more);
        edge.push(leaf_hash(&record), |_| {});
        let size = index + 1;
        let theirs = tlog::tree_hash(size, &stored).unwrap();
        assert_eq!(edge.root(), theirs.0, "tree of {size}");
        if !SIZES.contains(&size) {
            continue;
        }
        let mut leaves = Leaves::new(size);
        for index in [0, 1, size / 2, size - 1].into_iter().filter(|index| *index < size) {
            let proof = prove_inclusion(&mut leaves, index, size).unwrap();
            let theirs: Vec<Hash> = tlog::prove_record(size, index, &stored)
                .unwrap()
                .iter()
                .map(|hash| hash.0)
                .collect();
            assert_eq!(proof, theirs, "record {index} of {size}");
        }
        for old in SIZES.into_iter().filter(|old| *old < size) {
            let proof = prove_consistency(&mut leaves, old, size).unwrap();
            let theirs: Vec<Hash> =
                tlog::prove_tree(size, old, &stored).unwrap().iter().map(|hash| hash.0).collect();
            assert_eq!(proof, theirs, "from {old} to {size}");
        }
    }
}

#[test]
fn a_true_proof_holds_and_a_changed_one_does_not() {
    for size in SIZES {
        let mut leaves = Leaves::new(size);
        let root = range_root(&mut leaves, 0, size).unwrap();
        for index in (0..size).step_by(7) {
            let leaf = leaves.0[usize::try_from(index).unwrap()];
            let proof = prove_inclusion(&mut leaves, index, size).unwrap();
            assert_eq!(root_of_inclusion(leaf, index, size, &proof), Some(root));
            for at in 0..proof.len() {
                let mut wrong = proof.clone();
                wrong[at][0] ^= 1;
                assert_ne!(root_of_inclusion(leaf, index, size, &wrong), Some(root));
            }
            let mut longer = proof.clone();
            longer.push(root);
            assert_ne!(root_of_inclusion(leaf, index, size, &longer), Some(root));
            assert_ne!(root_of_inclusion(leaf, index + 1, size, &proof), Some(root));
        }
        for old in 0..=size {
            let before = range_root(&mut leaves, 0, old).unwrap();
            let proof = prove_consistency(&mut leaves, old, size).unwrap();
            assert!(is_consistent((old, &before), (size, &root), &proof), "{old} of {size}");
            let mut other = before;
            other[31] ^= 1;
            assert!(!is_consistent((old, &other), (size, &root), &proof), "{old} of {size}");
            for at in 0..proof.len() {
                let mut wrong = proof.clone();
                wrong[at][0] ^= 1;
                assert!(!is_consistent((old, &before), (size, &root), &wrong), "{old} of {size}");
            }
        }
    }
}

#[test]
fn an_edge_goes_on_from_its_incomplete_tiles() {
    for size in [0, 1, 255, 256, 257, 65_535, 65_536, 65_537, 70_000] {
        let mut edge = Edge::default();
        for index in 0..size {
            edge.push(leaf_hash(&u64::to_be_bytes(index)), |_| {});
        }
        let mut restored = Edge::restore(size, edge.partial_tiles().to_vec()).unwrap();
        assert_eq!(restored.root(), edge.root());
        let (mut one, mut other) = (Vec::new(), Vec::new());
        for index in size..size + 300 {
            edge.push(leaf_hash(&index.to_be_bytes()), |tile| one.push(tile));
            restored.push(leaf_hash(&index.to_be_bytes()), |tile| other.push(tile));
        }
        assert_eq!((restored.root(), other), (edge.root(), one));
    }
    assert!(Edge::restore(257, vec![Vec::new(), Vec::new()]).is_none());
}

#[test]
fn a_tree_of_70_000_has_the_tiles_that_the_specification_says() {
    let mut full = [0_u32; 2];
    let mut edge = Edge::default();
    for index in 0..70_000_u64 {
        edge.push(leaf_hash(&index.to_be_bytes()), |tile| full[usize::from(tile.level)] += 1);
    }
    assert_eq!(full, [273, 1]);
    assert_eq!(partial_widths(70_000), [112, 17, 1]);
    let widths: Vec<usize> = edge.partial_tiles().iter().map(Vec::len).collect();
    assert_eq!(widths, [112, 17, 1]);
}
