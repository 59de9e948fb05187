#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use super::*;

/// The example of c2sp.org/signed-note.
const VKEY: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
const NOTE: &str = "This is an example message.\n\n\u{2014} example.com/foo \
     Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";

/// The example of c2sp.org/tlog-checkpoint.
const CHECKPOINT: &str = "example.com/behind-the-sofa\n20852163\n\
     CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n\u{2014} example.com/behind-the-sofa \
     Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n";

#[test]
fn the_note_of_the_specification_verifies() {
    let key: PublicKey = VKEY.parse().unwrap();
    assert_eq!(key.to_string(), VKEY);
    let note = Note::parse(NOTE.as_bytes()).unwrap();
    assert_eq!(note.verify(&key), Ok(Verified { at_unix_s: None }));
    assert_eq!(note.to_string(), NOTE);
}

#[test]
fn the_checkpoint_of_the_specification_is_read() {
    let checkpoint = Checkpoint::parse(CHECKPOINT.as_bytes()).unwrap();
    assert_eq!(checkpoint.head.size, 20_852_163);
    assert_eq!(checkpoint.head.text(), checkpoint.note.text);
    assert_eq!(checkpoint.note.to_string(), CHECKPOINT);
}

#[test]
fn a_note_with_any_bit_flipped_does_not_verify() {
    let key: PublicKey = VKEY.parse().unwrap();
    for at in 0..NOTE.len() * 8 {
        let mut bytes = NOTE.as_bytes().to_vec();
        bytes[at / 8] ^= 1 << (at % 8);
        let verified = Note::parse(&bytes).and_then(|note| note.verify(&key));
        assert!(verified.is_err(), "bit {at}");
    }
}

#[test]
fn our_notes_and_keys_are_those_of_another_implementation() {
    let secret = SecretKey::new("example.com/log", KeyType::Note, &[7; 32]).unwrap();
    let theirs = signed_note::StandardSigner::new(secret.to_text().trim()).unwrap();
    let text = "example.com/log\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";
    let ours = Note { text: text.to_owned(), signatures: vec![secret.sign(text, 0)] };
    let mut other = signed_note::Note::new(text.as_bytes(), &[]).unwrap();
    other.add_sigs(&[&theirs]).unwrap();
    assert_eq!(other.to_bytes(), ours.to_string().as_bytes());
    let verifier = signed_note::StandardVerifier::new(&secret.public().to_string()).unwrap();
    let verifiers = signed_note::VerifierList::new(vec![Box::new(verifier)]);
    let read = signed_note::Note::from_bytes(ours.to_string().as_bytes()).unwrap();
    assert_eq!(read.verify(&verifiers).unwrap().0.len(), 1);
    let head = tlog_tiles::Checkpoint::from_bytes(text.as_bytes()).unwrap();
    assert_eq!((head.origin(), head.size()), ("example.com/log", 1));
}

#[test]
fn a_cosignature_says_when_it_was_made_and_covers_that() {
    let secret = SecretKey::new("witness.example/w1", KeyType::Cosignature, &[9; 32]).unwrap();
    let text = "example.com/log\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n";
    let signature = secret.sign(text, 1_679_315_147);
    let verified = secret.public().verify(text, &signature).unwrap();
    assert_eq!(verified, Some(Verified { at_unix_s: Some(1_679_315_147) }));
    let mut other = signature;
    other.blob[7] ^= 1;
    assert!(secret.public().verify(text, &other).is_err());
}

#[test]
fn what_is_no_key_is_refused_and_never_repeated() {
    let secret = SecretKey::new("example.com/log", KeyType::Note, &[7; 32]).unwrap();
    let text = secret.to_text();
    for at in 12..text.len() - 1 {
        let mut bytes = text.as_bytes().to_vec();
        bytes[at] ^= 1;
        let read = String::from_utf8(bytes).map(|text| SecretKey::parse(&text));
        let Ok(Err(error)) = read else {
            panic!("byte {at} changed: accepted");
        };
        assert!(!error.to_string().contains("BwcHBwcH"), "{error}");
    }
    assert!(!format!("{secret:?}").contains("[7"), "{secret:?}");
}

#[test]
fn a_hostile_note_is_refused() {
    let lines = "\u{2014} example.com/foo AAAAAAAAAAA=\n".repeat(SIGNATURE_LIMIT + 1);
    for bytes in [
        b"".to_vec(),
        b"\n\n".to_vec(),
        b"\n\n\n".to_vec(),
        b"text\n\n\xff".to_vec(),
        b"text\r\n\n\xe2\x80\x94 a AAAAAAA=\n".to_vec(),
        format!("text\n\n{lines}").into_bytes(),
        vec![b'a'; NOTE_LIMIT + 1],
    ] {
        assert!(Note::parse(&bytes).is_err());
    }
    for text in ["a\n01\nx\n", "a\n1\nx\n", "a\n+1\nx\n", "a\n1\n", "\n1\nx\n", "a\n1\nx\ny\n"] {
        let text = text.replace("\nx\n", "\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n");
        let fine = text.starts_with("a\n1\n47") && text.ends_with("FU=\n");
        assert_eq!(TreeHead::parse(&text).is_ok(), fine, "{text:?}");
    }
}
