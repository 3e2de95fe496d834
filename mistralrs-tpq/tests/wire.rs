//! The bytes on the wire: pinned, reversible, and harmless whatever they are.

use mistralrs_tpq::codec::Dtype;
use mistralrs_tpq::wire::*;
use proptest::prelude::*;

fn hello() -> Hello {
    Hello {
        purpose: Purpose::Control,
        rank: 2,
        to: 0,
        world_size: 4,
        identity: Identity {
            dtype: Dtype::Bf16,
            model: [0x11; 32],
            manifest: [0x9f; 32],
            codec: "paper".into(),
            policy: "auto;fail".into(),
        },
    }
}

fn header() -> FrameHeader {
    FrameHeader {
        kind: FrameKind::OneShot,
        codec: 1,
        dtype: 1,
        flags: FLAG_NONFINITE,
        rank: 3,
        sequence: 0x0102_0304_0506_0708,
        site: 63,
        tokens: 512,
        payload_len: 1_097_728,
        part: 0,
    }
}

fn refusal() -> Refusal {
    Refusal {
        sender: 2,
        by: 0,
        field: HelloField::Manifest,
        expected: "41aa0000..".into(),
        got: "9f3c0000..".into(),
    }
}

fn parse_hello(bytes: &[u8]) -> Result<Hello, WireError> {
    let prefix = Prefix::of_hello(bytes)?;
    Hello::parse(&prefix, bytes.get(PREFIX_LEN..).unwrap_or_default())
}

fn parse_reply(bytes: &[u8]) -> Result<Reply, WireError> {
    let prefix = Prefix::of_reply(bytes)?;
    Reply::parse(&prefix, bytes.get(PREFIX_LEN..).unwrap_or_default())
}

fn hex(bytes: &[u8]) -> String {
    let lines = bytes
        .chunks(16)
        .map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

/// Compares with tests/golden/wire/NAME.hex; a new format needs a new PROTOCOL_VERSION and new files by hand.
fn assert_golden(name: &str, bytes: &[u8]) {
    let path = format!("{}/tests/golden/wire/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(hex(bytes), golden, "{path} differs: is PROTOCOL_VERSION raised?");
}

#[test]
fn the_bytes_of_every_format_are_pinned() {
    assert_golden("hello", &hello().encode());
    assert_golden("accepted", &Reply::Accepted(hello()).encode());
    assert_golden("refused", &Reply::Refused(refusal()).encode());
    assert_golden("header", &header().encode());
    assert_golden(
        "heartbeat",
        &ControlPrefix {
            kind: ControlKind::Heartbeat,
            len: 0,
        }
        .encode(),
    );
}

#[test]
fn a_hello_survives_the_wire() {
    assert_eq!(parse_hello(&hello().encode()), Ok(hello()));
    assert_eq!(
        parse_reply(&Reply::Accepted(hello()).encode()),
        Ok(Reply::Accepted(hello()))
    );
    assert_eq!(
        parse_reply(&Reply::Refused(refusal()).encode()),
        Ok(Reply::Refused(refusal()))
    );
}

#[test]
fn a_refusal_names_field_values_and_remedy() {
    assert_eq!(
        refusal().to_string(),
        "rank 2 sent manifest 9f3c0000.., rank 0 expected 41aa0000..: copy manifest.yaml from rank 0"
    );
}

#[test]
fn each_differing_field_is_found_and_equal_hellos_fit() {
    let theirs = Hello {
        rank: 0,
        to: 2,
        ..hello()
    };
    assert_eq!(hello().refuse(&theirs), None);
    let cases: [(HelloField, fn(&mut Hello)); 8] = [
        (HelloField::WorldSize, |h| h.world_size = 5),
        (HelloField::Address, |h| h.to = 1),
        (HelloField::Model, |h| h.identity.model[31] = 0),
        (HelloField::Manifest, |h| h.identity.manifest[0] = 0),
        (HelloField::Dtype, |h| h.identity.dtype = Dtype::F16),
        (HelloField::Codec, |h| h.identity.codec = "none".into()),
        (HelloField::Policy, |h| h.identity.policy.push('x')),
        (HelloField::Rank, |h| h.rank = 4),
    ];
    for (field, change) in cases {
        let mut theirs = theirs.clone();
        change(&mut theirs);
        let refusal = hello().refuse(&theirs).expect("a difference");
        assert_eq!((refusal.field, refusal.by, refusal.sender), (field, 2, theirs.rank));
        assert_ne!(refusal.expected, refusal.got);
    }
}

#[test]
fn another_version_can_still_be_told_apart() {
    let mut bytes = hello().encode();
    bytes[4] = 9;
    let prefix = Prefix::of_hello(&bytes).unwrap();
    assert_eq!((prefix.version, prefix.rank), (9, 2));
    assert!(matches!(parse_hello(&bytes), Err(WireError::Version { got: 9, .. })));
}

#[test]
fn lengths_are_refused_before_anything_is_allocated() {
    let mut bytes = hello().encode();
    bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(Prefix::of_hello(&bytes), Err(WireError::TooLong { .. })));
    let prefix = ControlPrefix {
        kind: ControlKind::Message,
        len: 101,
    }
    .encode();
    assert!(matches!(
        ControlPrefix::parse(&prefix, 100),
        Err(WireError::TooLong {
            len: 101,
            limit: 100,
            ..
        })
    ));
    assert!(ControlPrefix::parse(&prefix, 101).is_ok());
}

#[test]
fn every_truncation_and_a_trailing_byte_are_errors() {
    let bytes = hello().encode();
    for len in 0..bytes.len() {
        assert!(parse_hello(&bytes[..len]).is_err(), "{len} of {} bytes", bytes.len());
    }
    assert!(matches!(
        parse_hello(&[&bytes[..], &[0]].concat()),
        Err(WireError::Trailing { extra: 1, .. })
    ));
    for len in 0..FRAME_HEADER_LEN {
        assert!(FrameHeader::parse(&header().encode()[..len]).is_err());
    }
}

fn any_hello() -> impl Strategy<Value = Hello> {
    let identity = (
        0..3_u8,
        any::<[u8; 32]>(),
        any::<[u8; 32]>(),
        "[ -~]{0,64}",
        "\\PC{0,200}",
    )
        .prop_map(|(dtype, model, manifest, codec, policy)| Identity {
            dtype: Dtype::from_tag(dtype).unwrap(),
            model,
            manifest,
            codec,
            policy,
        });
    (any::<bool>(), any::<u32>(), any::<u32>(), any::<u32>(), identity).prop_map(
        |(control, rank, to, world_size, identity)| Hello {
            purpose: if control { Purpose::Control } else { Purpose::Data },
            rank,
            to,
            world_size,
            identity,
        },
    )
}

fn any_header() -> impl Strategy<Value = FrameHeader> {
    let small = (1..5_u8, any::<u8>(), any::<u8>(), any::<u8>(), any::<u16>());
    (small, any::<u64>(), any::<[u32; 4]>()).prop_map(|((kind, codec, dtype, flags, rank), sequence, words)| {
        let [site, tokens, payload_len, part] = words;
        let kind = FrameKind::from_tag(kind).unwrap();
        FrameHeader {
            kind,
            codec,
            dtype,
            flags,
            rank,
            sequence,
            site,
            tokens,
            payload_len,
            part,
        }
    })
}

proptest! {
    #[test]
    fn any_hello_and_header_survive_the_wire(hello in any_hello(), header in any_header()) {
        prop_assert_eq!(parse_hello(&hello.encode()), Ok(hello.clone()));
        prop_assert_eq!(parse_reply(&Reply::Accepted(hello.clone()).encode()), Ok(Reply::Accepted(hello)));
        prop_assert_eq!(FrameHeader::parse(&header.encode()), Ok(header));
    }

    #[test]
    fn any_refusal_survives_the_wire(field in 1..11_u8, sender: u32, by: u32, expected in "\\PC{0,99}", got in "\\PC{0,99}") {
        let field = HelloField::from_tag(field).unwrap();
        let reply = Reply::Refused(Refusal { sender, by, field, expected, got });
        prop_assert_eq!(parse_reply(&reply.encode()), Ok(reply));
    }

    #[test]
    fn arbitrary_bytes_parse_or_fail_but_what_parses_is_what_was_sent(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(header) = FrameHeader::parse(&bytes) {
            prop_assert_eq!(&header.encode()[..], &bytes[..FRAME_HEADER_LEN]);
        }
        if let Ok(prefix) = ControlPrefix::parse(&bytes, usize::MAX) {
            prop_assert_eq!(&prefix.encode()[..], &bytes[..CONTROL_PREFIX_LEN]);
        }
        prop_assert!(parse_hello(&bytes).map_or(true, |h| h.encode().len() <= bytes.len()));
        let _ = parse_reply(&bytes);
    }

    #[test]
    fn a_valid_start_with_arbitrary_rest_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0..200_usize) {
        for mut valid in [hello().encode(), Reply::Refused(refusal()).encode(), Reply::Accepted(hello()).encode()] {
            let at = at.min(valid.len());
            valid.truncate(at);
            valid.extend_from_slice(&bytes);
            let (_, _) = (parse_hello(&valid), parse_reply(&valid));
        }
    }
}
