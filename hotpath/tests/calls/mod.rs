//! What the batcher sends, as a server would read it.

use _native::resp::{Value, decode};

pub fn read_calls(mut bytes: &[u8]) -> Vec<Vec<String>> {
    let mut calls = Vec::new();
    while let Some((Value::Array(parts), length)) = decode(bytes).unwrap() {
        let texts = parts.into_iter().map(|part| match part {
            Value::Bulk(text) => String::from_utf8(text).unwrap(),
            other => panic!("not a bulk string: {other:?}"),
        });
        calls.push(texts.collect());
        bytes = &bytes[length..];
    }
    assert!(bytes.is_empty());
    calls
}
