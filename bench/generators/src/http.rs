//! Just enough HTTP/1.1 of a keep-alive client: the bytes of a claim, and where an answer ends.

use std::fmt::Write;

/// What every request has; a claim adds a number.
pub struct Requests {
    pub host: String,
    pub path: String,
    pub token: String,
    pub seed: u64,
    pub is_keyed: bool,
}

impl Requests {
    /// The bytes of claim `number`: a customer and a key of its own.
    pub fn claim(&self, number: u64) -> Vec<u8> {
        let name = format!("{}-{number}", self.seed);
        let body = format!("{{\"customer_id\":\"cus_{name}\",\"order_value\":89.99}}");
        let mut text = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\n",
            self.path, self.host, self.token
        );
        if self.is_keyed {
            let _ = write!(text, "Idempotency-Key: {name}\r\n");
        }
        let _ = write!(text, "Content-Length: {}\r\n\r\n{body}", body.len());
        text.into_bytes()
    }
}

/// An answer that is complete: its status, and how many bytes it took.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub length: usize,
}

/// Read an answer; nothing while bytes are missing. A body is as long as its Content-Length says.
pub fn read(bytes: &[u8]) -> Option<Answer> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let text = std::str::from_utf8(&bytes[..head]).ok()?;
    let status = text.get(9..12)?.parse().ok()?;
    let body: usize = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.trim().parse().unwrap_or(0));
    let length = head + 4 + body;
    (bytes.len() >= length).then_some(Answer { status, length })
}

#[cfg(test)]
mod tests {
    use super::{Answer, Requests, read};

    const WON: &[u8] =
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nContent-Length: 7\r\n\r\n{\"n\":1}";

    #[test]
    fn an_answer_is_read_when_its_last_byte_is_there() {
        for cut in 0..WON.len() {
            assert_eq!(read(&WON[..cut]), None, "after {cut} bytes");
        }
        assert_eq!(
            read(WON),
            Some(Answer {
                status: 200,
                length: WON.len()
            })
        );
        let two = [WON, b"HTTP/1.1 503"].concat();
        assert_eq!(
            read(&two),
            Some(Answer {
                status: 200,
                length: WON.len()
            })
        );
    }

    #[test]
    fn each_claim_has_a_customer_and_a_key_of_its_own() {
        let requests = Requests {
            host: "h:1".into(),
            path: "/p".into(),
            token: "t".into(),
            seed: 7,
            is_keyed: true,
        };
        let claim = String::from_utf8(requests.claim(12)).unwrap();
        assert_eq!(
            claim,
            "POST /p HTTP/1.1\r\nHost: h:1\r\nAuthorization: Bearer t\r\n\
             Content-Type: application/json\r\nIdempotency-Key: 7-12\r\nContent-Length: 46\r\n\r\n\
             {\"customer_id\":\"cus_7-12\",\"order_value\":89.99}"
        );
        let bare = Requests {
            is_keyed: false,
            ..requests
        };
        assert!(
            !String::from_utf8(bare.claim(12))
                .unwrap()
                .contains("Idempotency-Key")
        );
    }
}
