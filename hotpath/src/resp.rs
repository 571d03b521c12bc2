//! RESP2, without I/O: requests are arrays of bulk strings, replies are decoded when complete.

/// Longest string accepted: a replayed payload is far shorter, `INFO` has some 10 kB.
const BULK_BYTES_MAX: i64 = 16 * 1024 * 1024;
/// Longest array accepted: a batch's reply has two values more than the batch has items.
const ARRAY_LEN_MAX: i64 = 65_536;
/// Deepest nesting accepted; our scripts answer with flat arrays.
const DEPTH_MAX: u8 = 4;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Int(i64),
    Bulk(Vec<u8>),
    Nil,
    Simple(Vec<u8>),
    Error(Vec<u8>),
    Array(Vec<Value>),
}

/// The bytes are no RESP2 reply: the connection must not be used again.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

pub fn put_array(out: &mut Vec<u8>, len: usize) {
    put_header(out, b'*', len);
}

pub fn put_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    put_header(out, b'$', bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

pub fn put_number(out: &mut Vec<u8>, number: usize) {
    put_bulk(out, number.to_string().as_bytes());
}

fn put_header(out: &mut Vec<u8>, kind: u8, len: usize) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    let mut rest = len;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.push(kind);
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

/// Decode one reply from the front: the value and its length, or nothing while it is incomplete.
pub fn decode(bytes: &[u8]) -> Result<Option<(Value, usize)>, Malformed> {
    let mut at = 0;
    Ok(decode_at(bytes, &mut at, 0)?.map(|value| (value, at)))
}

fn decode_at(bytes: &[u8], at: &mut usize, depth: u8) -> Result<Option<Value>, Malformed> {
    let Some(line) = take_line(bytes, at) else {
        return Ok(None);
    };
    let Some((&kind, rest)) = line.split_first() else {
        return Err(Malformed);
    };
    Ok(Some(match kind {
        b'+' => Value::Simple(rest.to_vec()),
        b'-' => Value::Error(rest.to_vec()),
        b':' => Value::Int(number(rest)?),
        b'$' => match number(rest)? {
            -1 => Value::Nil,
            len @ 0..=BULK_BYTES_MAX => {
                let end = *at + len as usize;
                let Some(terminator) = bytes.get(end..end + 2) else {
                    return Ok(None);
                };
                if terminator != b"\r\n" {
                    return Err(Malformed);
                }
                let value = Value::Bulk(bytes[*at..end].to_vec());
                *at = end + 2;
                value
            }
            _ => return Err(Malformed),
        },
        b'*' => match number(rest)? {
            -1 => Value::Nil,
            len @ 0..=ARRAY_LEN_MAX if depth < DEPTH_MAX => {
                let mut values = Vec::with_capacity((len as usize).min(bytes.len()));
                for _ in 0..len {
                    let Some(value) = decode_at(bytes, at, depth + 1)? else {
                        return Ok(None);
                    };
                    values.push(value);
                }
                Value::Array(values)
            }
            _ => return Err(Malformed),
        },
        _ => return Err(Malformed),
    }))
}

fn take_line<'a>(bytes: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let rest = bytes.get(*at..)?;
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    *at += end + 2;
    Some(&rest[..end])
}

fn number(digits: &[u8]) -> Result<i64, Malformed> {
    let text = std::str::from_utf8(digits).map_err(|_| Malformed)?;
    text.parse().map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8]) -> Value {
        let (value, len) = decode(bytes).unwrap().unwrap();
        assert_eq!(len, bytes.len());
        value
    }

    #[test]
    fn a_request_is_written_as_an_array_of_bulk_strings() {
        let mut out = Vec::new();
        put_array(&mut out, 3);
        put_bulk(&mut out, b"SET");
        put_bulk(&mut out, b"");
        put_number(&mut out, 1_024);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$0\r\n\r\n$4\r\n1024\r\n");
    }

    #[test]
    fn what_was_written_is_read_back() {
        let texts: [&[u8]; 4] = [b"", b"a", b"\r\n$5\r\n", "ключ €".as_bytes()];
        let mut out = Vec::new();
        put_array(&mut out, texts.len());
        for text in texts {
            put_bulk(&mut out, text);
        }
        let expected = texts.iter().map(|text| Value::Bulk(text.to_vec())).collect();
        assert_eq!(whole(&out), Value::Array(expected));
    }

    #[test]
    fn every_kind_of_reply_is_understood() {
        assert_eq!(whole(b":-9\r\n"), Value::Int(-9));
        assert_eq!(whole(b"+OK\r\n"), Value::Simple(b"OK".to_vec()));
        assert_eq!(whole(b"-OOM no\r\n"), Value::Error(b"OOM no".to_vec()));
        assert_eq!(whole(b"$-1\r\n"), Value::Nil);
        assert_eq!(whole(b"*-1\r\n"), Value::Nil);
        assert_eq!(whole(b"*0\r\n"), Value::Array(vec![]));
        let mixed = Value::Array(vec![Value::Int(1), Value::Bulk(b"R1".to_vec()), Value::Nil]);
        assert_eq!(whole(b"*3\r\n:1\r\n$2\r\nR1\r\n$-1\r\n"), mixed);
    }

    #[test]
    fn a_reply_cut_anywhere_is_incomplete_and_never_wrong() {
        let reply = b"*4\r\n:1700000000000\r\n:20\r\n$9\r\nR1|2|3|xy\r\n:-3\r\n";
        for cut in 0..reply.len() {
            assert_eq!(decode(&reply[..cut]), Ok(None), "cut at {cut}");
        }
        assert!(decode(reply).unwrap().is_some());
    }

    #[test]
    fn the_next_reply_stays_in_the_buffer() {
        assert_eq!(decode(b":1\r\n:2\r\n").unwrap().unwrap(), (Value::Int(1), 4));
    }

    #[test]
    fn nonsense_is_refused() {
        let nonsense: [&[u8]; 7] = [
            b"?x\r\n",
            b"\r\n",
            b":x\r\n",
            b"$-2\r\n",
            b"$1\r\nab\r\n",
            b"*99999999\r\n",
            b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
        ];
        for bytes in nonsense {
            assert_eq!(decode(bytes), Err(Malformed), "{bytes:?}");
        }
    }
}
