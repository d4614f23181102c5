//! How a message looks between processes: a head, and, if it is not short, the elements by themselves behind it.

use std::borrow::Cow;

use crate::error::Error;
use crate::transport::{Envelope, Payload, Tag};

/// What the first message of a pair says.
#[derive(Debug)]
pub(crate) enum Head {
    /// A message whose elements are in the head.
    Whole(Envelope),
    /// A message whose elements follow; the envelope has none yet.
    Follows(Announced),
    /// The sender sends nothing more.
    Ended,
}

/// A message whose elements are still to come.
#[derive(Debug)]
pub(crate) struct Announced {
    pub group: u64,
    pub tag: Tag,
    operation: String,
    type_name: String,
    extent: u64,
    origin: f64,
    pub align: usize,
    pub bytes: usize,
}

impl Announced {
    /// The message, with its elements.
    pub fn complete(self, src: usize, payload: Payload) -> Envelope {
        let (operation, type_name) = (Cow::Owned(self.operation), Cow::Owned(self.type_name));
        Envelope {
            group: self.group,
            src,
            tag: self.tag,
            operation,
            type_name,
            extent: self.extent,
            origin: self.origin,
            payload,
        }
    }
}

const ENDED: u8 = 0;
const WHOLE: u8 = 1;
const FOLLOWS: u8 = 2;

/// One byte each: kind, kind of tag, alignment, reserved; two lengths of texts; five words.
const FIXED: usize = 8 + 5 * 8;

/// The head of a message; its elements are in it when they are no more than `inline` bytes.
pub(crate) fn encode(envelope: &Envelope, inline: usize) -> Result<(Vec<u8>, bool), Error> {
    let bytes = envelope.payload.bytes();
    let refuse = |expected: &str, got: String| Error::Shape { what: "message between processes", expected: expected.into(), got };
    let align = envelope.payload.align();
    if !matches!(align, 1 | 2 | 4 | 8 | 16) {
        return Err(refuse("elements aligned to at most 16 bytes", format!("{}, aligned to {align}", envelope.type_name)));
    }
    let whole = bytes.len() <= inline;
    let text = |text: &str| u16::try_from(text.len()).map_err(|_| refuse("names of at most 65535 bytes", text.len().to_string()));
    let (operation, type_name) = (text(&envelope.operation)?, text(&envelope.type_name)?);
    let (user, tag) = match envelope.tag {
        Tag::User(tag) => (1, tag),
        Tag::Collective => (0, 0),
    };
    let mut head =
        Vec::with_capacity(FIXED + envelope.operation.len() + envelope.type_name.len() + if whole { bytes.len() } else { 0 });
    head.extend([if whole { WHOLE } else { FOLLOWS }, user, align as u8, 0]);
    head.extend(operation.to_le_bytes());
    head.extend(type_name.to_le_bytes());
    for word in [envelope.group, tag, envelope.extent, envelope.origin.to_bits(), bytes.len() as u64] {
        head.extend(word.to_le_bytes());
    }
    head.extend(envelope.operation.as_bytes());
    head.extend(envelope.type_name.as_bytes());
    if whole {
        head.extend(bytes);
    }
    Ok((head, whole))
}

/// The head that says that nothing more comes.
pub(crate) fn encode_ended() -> Vec<u8> {
    let mut head = vec![0; FIXED];
    head[0] = ENDED;
    head
}

/// Reads a head that rank `src` has sent.
pub(crate) fn decode(head: &[u8], src: usize) -> Result<Head, Error> {
    parse(head, src)?.ok_or_else(|| Error::Shape {
        what: "message between processes",
        expected: "the head of one of this program's messages".into(),
        got: format!("{} bytes from rank {src} that are none: do all ranks run the same program?", head.len()),
    })
}

fn parse(head: &[u8], src: usize) -> Result<Option<Head>, Error> {
    let Some((fixed, rest)) = head.split_first_chunk::<FIXED>() else { return Ok(None) };
    let [kind, user, align, _, o0, o1, t0, t1, words @ ..] = fixed;
    let (operation, type_name) = (usize::from(u16::from_le_bytes([*o0, *o1])), usize::from(u16::from_le_bytes([*t0, *t1])));
    let words = words.as_chunks::<8>().0;
    let &[group, tag, extent, origin, bytes] = words else { return Ok(None) };
    let [group, tag, extent, origin, bytes] = [group, tag, extent, origin, bytes].map(u64::from_le_bytes);
    if *kind == ENDED {
        return Ok(Some(Head::Ended));
    }
    let (Some(operation), Some(type_name), Some(data)) =
        (rest.get(..operation), rest.get(operation..operation + type_name), rest.get(operation + type_name..))
    else {
        return Ok(None);
    };
    let (Ok(operation), Ok(type_name), Ok(bytes)) =
        (std::str::from_utf8(operation), std::str::from_utf8(type_name), usize::try_from(bytes))
    else {
        return Ok(None);
    };
    let tag = if *user == 1 { Tag::User(tag) } else { Tag::Collective };
    let announced = Announced {
        group,
        tag,
        operation: operation.to_owned(),
        type_name: type_name.to_owned(),
        extent,
        origin: f64::from_bits(origin),
        align: usize::from(*align),
        bytes,
    };
    match *kind {
        FOLLOWS if data.is_empty() && bytes > 0 => Ok(Some(Head::Follows(announced))),
        WHOLE if data.len() == bytes => {
            let payload = Payload::receive(announced.align, bytes, |to| to.copy_from_slice(data))?;
            Ok(Some(Head::Whole(announced.complete(src, payload))))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(data: Vec<u32>) -> Envelope {
        Envelope {
            group: u64::MAX,
            src: 3,
            tag: Tag::User(1 << 40),
            operation: Cow::Borrowed("send"),
            type_name: Cow::Borrowed("u32"),
            extent: 11,
            origin: 0.25,
            payload: Payload::new(data),
        }
    }

    #[test]
    fn short_messages_are_whole_and_long_ones_follow() {
        let (head, whole) = encode(&envelope(vec![1, 2, 3]), 12).unwrap();
        assert!(whole);
        let Head::Whole(got) = decode(&head, 3).unwrap() else { panic!("whole") };
        assert_eq!((got.group, got.src, got.tag, got.extent, got.origin), (u64::MAX, 3, Tag::User(1 << 40), 11, 0.25));
        assert_eq!(
            (&*got.operation, &*got.type_name, got.payload.bytes()),
            ("send", "u32", envelope(vec![1, 2, 3]).payload.bytes())
        );

        let (head, whole) = encode(&envelope(vec![1, 2, 3, 4]), 12).unwrap();
        assert!(!whole);
        let Head::Follows(announced) = decode(&head, 3).unwrap() else { panic!("follows") };
        assert_eq!((announced.align, announced.bytes), (4, 16));
        assert!(matches!(decode(&encode_ended(), 0).unwrap(), Head::Ended));
    }

    #[test]
    fn no_head_can_break_the_reader() {
        let (head, _) = encode(&envelope(vec![1, 2, 3]), 12).unwrap();
        for len in 0..head.len() {
            assert!(decode(&head[..len], 0).is_err(), "cut at {len}");
        }
        for at in 0..head.len() {
            for value in [0, 1, 2, 3, 0x7f, 0x80, 0xff] {
                let mut changed = head.clone();
                changed[at] = value;
                // Whatever it is taken for, the elements it has are those that came.
                if let Ok(Head::Whole(got)) = decode(&changed, 0) {
                    assert_eq!(got.payload.bytes().len(), 12);
                }
            }
        }
    }
}
