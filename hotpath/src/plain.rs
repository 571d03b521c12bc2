//! The plain claim: a body of the common shape is read, priced and answered without Python objects.
//!
//! Only what nearly every claim looks like is taken here: one flat object with plain strings and an
//! amount written as people write it. Anything else is nobody's business here and goes the general
//! way, which also words every refusal. What is computed must be to the byte what the general way
//! computes; a property test holds the two together.

use sha2::{Digest, Sha256};

use crate::receipts;

/// Ids and references of other systems, as the general way bounds them.
const REFERENCE_MAX: usize = 200;
/// Digits of an amount: with four decimals and times 10,000 basis points it still fits 64 bits.
const DIGITS_MAX: usize = 11;
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// What redemptions of one voucher are priced and answered with, under one version of its terms.
pub struct Terms {
    pub code_norm: String,
    /// `"code":…` as JSON text.
    pub code_json: String,
    pub currency: String,
    /// Decimals of the currency.
    pub exponent: usize,
    /// Basis points, or else an amount off.
    pub discount_bp: Option<u64>,
    pub discount_minor: u64,
    pub min_order_minor: u64,
    /// What follows `redeemed_at`, and the receipt, in every answer.
    pub tail: String,
}

/// What makes the ids and the sale-wide numbers of a lease's wins.
pub struct Lease {
    pub id: [u8; 16],
    pub tag: u64,
    pub seq_base: u64,
}

/// An answer's own part: the id's 128 bits, the number, what was left, and when.
pub struct Told {
    pub id: u128,
    pub seq: u64,
    pub remaining: Option<i64>,
    pub at_ms: i64,
}

impl Lease {
    /// See `core/ids.py`: the tag, the number, and three bytes that only the lease's id gives.
    pub fn told(&self, seq: u64, remaining: i64, at_ms: i64) -> Told {
        let check = Sha256::new().chain_update(self.id).chain_update(seq.to_be_bytes()).finalize();
        let low = u128::from(check[0]) << 16 | u128::from(check[1]) << 8 | u128::from(check[2]);
        let id = u128::from(self.tag) << 64 | u128::from(seq) << 24 | low;
        Told { id, seq: self.seq_base + seq, remaining: Some(remaining), at_ms }
    }
}

/// A claim that was read and priced.
#[derive(Debug, PartialEq, Eq)]
pub struct Ask {
    pub customer: String,
    pub order_id: Option<String>,
    pub order_value_minor: u64,
    pub discount_minor: u64,
}

/// Read a body, or leave it to the general way.
pub fn read(terms: &Terms, body: &[u8]) -> Option<Ask> {
    let mut rest = Reader(body);
    let (mut customer, mut order_id, mut order_value) = (None, None, None);
    rest.take(b'{')?;
    loop {
        let name = rest.string()?;
        rest.take(b':')?;
        match name {
            "customer_id" if customer.is_none() => customer = Some(rest.string()?),
            "order_id" if order_id.is_none() => order_id = Some(rest.string()?),
            "order_value" if order_value.is_none() => {
                order_value = Some(rest.amount(terms.exponent)?);
            }
            _ => return None,
        }
        match rest.next()? {
            b',' => {}
            b'}' => break,
            _ => return None,
        }
    }
    if !rest.is_at_end() {
        return None;
    }
    let order_value_minor = order_value.filter(|value| *value >= terms.min_order_minor)?;
    let discount_minor = match terms.discount_bp {
        Some(bp) => (order_value_minor * bp + 5_000) / 10_000,
        None => terms.discount_minor.min(order_value_minor),
    };
    Some(Ask {
        customer: customer?.to_owned(),
        order_id: order_id.map(str::to_owned),
        order_value_minor,
        discount_minor,
    })
}

impl Ask {
    /// 128 bits over the code and the canonical body.
    pub fn fingerprint(&self, terms: &Terms) -> [u8; 16] {
        let mut text = Vec::with_capacity(96);
        text.extend_from_slice(terms.code_norm.as_bytes());
        text.extend_from_slice(b"\n[\"");
        text.extend_from_slice(self.customer.as_bytes());
        text.extend_from_slice(b"\",");
        push_number(&mut text, self.order_value_minor);
        text.push(b',');
        self.push_order_id(&mut text);
        text.extend_from_slice(b",null]");
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&Sha256::digest(&text)[..16]);
        fingerprint
    }

    /// What travels with the win: amounts, order id, metadata.
    pub fn payload(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(48);
        text.push(b'[');
        push_number(&mut text, self.order_value_minor);
        text.push(b',');
        push_number(&mut text, self.discount_minor);
        text.push(b',');
        self.push_order_id(&mut text);
        text.extend_from_slice(b",null]");
        text
    }

    /// The answer to a redemption, as JSON; a lease's win has a receipt.
    pub fn answer(&self, terms: &Terms, told: &Told, receipts: Option<&receipts::Key>) -> Vec<u8> {
        let mut text = Vec::with_capacity(512);
        text.extend_from_slice(b"{\"redemption_id\":\"rdm_");
        push_id(&mut text, told.id);
        text.extend_from_slice(b"\",\"status\":\"redeemed\",\"code\":");
        text.extend_from_slice(terms.code_json.as_bytes());
        text.extend_from_slice(b",\"discount_applied\":");
        push_amount(&mut text, self.discount_minor, terms.exponent);
        text.extend_from_slice(b",\"remaining\":");
        let remaining = told.remaining.map_or_else(|| "null".to_owned(), |left| left.to_string());
        text.extend_from_slice(remaining.as_bytes());
        text.extend_from_slice(b",\"seq\":");
        push_number(&mut text, told.seq);
        text.extend_from_slice(b",\"order_value\":");
        push_amount(&mut text, self.order_value_minor, terms.exponent);
        text.extend_from_slice(b",\"currency\":\"");
        text.extend_from_slice(terms.currency.as_bytes());
        text.extend_from_slice(b"\",\"customer_id\":\"");
        text.extend_from_slice(self.customer.as_bytes());
        text.extend_from_slice(b"\",\"order_id\":");
        self.push_order_id(&mut text);
        text.extend_from_slice(b",\"redeemed_at\":\"");
        push_instant(&mut text, told.at_ms);
        text.push(b'"');
        if let Some(key) = receipts {
            let receipt = hex(key.sign(&text));
            text.extend_from_slice(b",\"receipt\":\"rcp_");
            text.extend_from_slice(receipt.as_bytes());
            text.push(b'"');
        }
        text.extend_from_slice(terms.tail.as_bytes());
        text
    }

    fn push_order_id(&self, text: &mut Vec<u8>) {
        match &self.order_id {
            Some(order_id) => {
                text.push(b'"');
                text.extend_from_slice(order_id.as_bytes());
                text.push(b'"');
            }
            None => text.extend_from_slice(b"null"),
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<u8> {
        while let [b' ', rest @ ..] = self.0 {
            self.0 = rest;
        }
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn take(&mut self, wanted: u8) -> Option<()> {
        (self.next()? == wanted).then_some(())
    }

    fn is_at_end(&mut self) -> bool {
        self.next().is_none()
    }

    /// A string that is the same inside JSON as outside: printable ASCII, nothing escaped.
    fn string(&mut self) -> Option<&'a str> {
        self.take(b'"')?;
        let end = self.0.iter().position(|byte| *byte == b'"')?;
        let (text, rest) = self.0.split_at(end);
        let is_plain = text.iter().all(|byte| matches!(byte, b' '..=b'~') && *byte != b'\\');
        if !is_plain || text.is_empty() || text.len() > REFERENCE_MAX {
            return None;
        }
        self.0 = &rest[1..];
        std::str::from_utf8(text).ok()
    }

    /// An amount in minor units: whole, or with exactly the currency's decimals.
    fn amount(&mut self, exponent: usize) -> Option<u64> {
        let first = self.next()?;
        let (mut whole, mut digits) = (digit(first)?, 1);
        while let Some(value) = self.0.first().copied().and_then(digit) {
            if whole == 0 || digits == DIGITS_MAX {
                return None;
            }
            (whole, digits) = (whole * 10 + value, digits + 1);
            self.0 = &self.0[1..];
        }
        let mut minor = whole * 10_u64.pow(exponent as u32);
        if self.0.first() == Some(&b'.') {
            let decimals = self.0.get(1..=exponent)?;
            let mut part = 0;
            for byte in decimals {
                part = part * 10 + digit(*byte)?;
            }
            minor += part;
            self.0 = &self.0[1 + exponent..];
        }
        let is_over = matches!(self.0.first(), Some(b',' | b'}' | b' '));
        (is_over && exponent <= 4).then_some(minor)
    }
}

fn digit(byte: u8) -> Option<u64> {
    byte.is_ascii_digit().then(|| u64::from(byte - b'0'))
}

fn push_number(text: &mut Vec<u8>, number: u64) {
    text.extend_from_slice(number.to_string().as_bytes());
}

fn push_amount(text: &mut Vec<u8>, minor: u64, exponent: usize) {
    let scale = 10_u64.pow(exponent as u32);
    push_number(text, minor / scale);
    if exponent > 0 {
        text.extend_from_slice(format!(".{:0exponent$}", minor % scale).as_bytes());
    }
}

/// 128 bits as fingerprints travel to Redis.
pub fn hex(bytes: [u8; 16]) -> String {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// An id's 26 characters.
pub fn id_text(id: u128) -> String {
    let mut text = Vec::with_capacity(26);
    push_id(&mut text, id);
    text.into_iter().map(char::from).collect()
}

fn push_id(text: &mut Vec<u8>, id: u128) {
    for place in (0..26).rev() {
        text.push(ALPHABET[(id >> (5 * place)) as usize & 31]);
    }
}

/// RFC 3339, UTC, milliseconds. Days to dates as in Howard Hinnant's `civil_from_days`.
fn push_instant(text: &mut Vec<u8>, at_ms: i64) {
    let (days, ms) = (at_ms.div_euclid(86_400_000), at_ms.rem_euclid(86_400_000));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    let ms = ms % 1_000;
    let instant =
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z");
    text.extend_from_slice(instant.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms() -> Terms {
        Terms {
            code_norm: "DROP1".into(),
            code_json: "\"Drop1\"".into(),
            currency: "EUR".into(),
            exponent: 2,
            discount_bp: Some(5_000),
            discount_minor: 0,
            min_order_minor: 100,
            tail: "}".into(),
        }
    }

    #[test]
    fn a_plain_body_is_read_and_priced_half_up() {
        let body = br#"{"customer_id": "cust_1", "order_value": 89.99}"#;
        let ask = read(&terms(), body).expect("plain");
        assert_eq!((ask.order_value_minor, ask.discount_minor), (8_999, 4_500));
        assert_eq!(ask.payload(), b"[8999,4500,null,null]");
    }

    #[test]
    fn what_is_not_plain_is_left_to_the_general_way() {
        for body in [
            "",
            "{}",
            "[]",
            r#"{"customer_id":"c"}"#,
            r#"{"order_value":89.99}"#,
            r#"{"customer_id":"c","order_value":89.999}"#,
            r#"{"customer_id":"c","order_value":89.9}"#,
            r#"{"customer_id":"c","order_value":089.99}"#,
            r#"{"customer_id":"c","order_value":-1}"#,
            r#"{"customer_id":"c","order_value":1e3}"#,
            r#"{"customer_id":"c","order_value":0.99}"#,
            r#"{"customer_id":"c","order_value":"89.99"}"#,
            r#"{"customer_id":"","order_value":89.99}"#,
            r#"{"customer_id":"a\"b","order_value":89.99}"#,
            r#"{"customer_id":"é","order_value":89.99}"#,
            r#"{"customer_id":"c","order_value":89.99,"metadata":{}}"#,
            r#"{"customer_id":"c","order_value":89.99,"order_value":89.99}"#,
            r#"{"customer_id":"c","order_value":89.99} x"#,
            r#"{"customer_id":"c","order_value":99999999999999}"#,
            r#"{"customer_id":"c","order_value":89.99"#,
            r#"{"customer_id":"c","order_value":89."#,
        ] {
            assert_eq!(read(&terms(), body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn instants_are_written_over_leap_years_and_centuries() {
        for (at_ms, wanted) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_390_460_123, "2026-11-22T23:34:20.123Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
        ] {
            let mut text = Vec::new();
            push_instant(&mut text, at_ms);
            assert_eq!(String::from_utf8_lossy(&text), wanted);
        }
    }
}
