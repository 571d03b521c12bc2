//! `PostgreSQL`'s array literals: one string a column, where a list costs the driver an object an
//! element.

use std::fmt::Write as _;

/// A column being written, element by element.
pub struct Column {
    literal: String,
    is_told: bool,
}

impl Default for Column {
    fn default() -> Self {
        Self { literal: String::with_capacity(1_024), is_told: false }
    }
}

impl Column {
    fn begin(&mut self) -> &mut String {
        self.literal.push(if self.literal.is_empty() { '{' } else { ',' });
        &mut self.literal
    }

    fn next(&mut self) -> &mut String {
        self.is_told = true;
        self.begin()
    }

    pub fn number(&mut self, number: i128) {
        let _ = write!(self.next(), "{number}");
    }

    /// An element in quotes: then only quotes and backslashes mean anything.
    pub fn text(&mut self, element: &str) {
        let text = self.next();
        text.push('"');
        for part in element.split_inclusive(['"', '\\']) {
            let plain = part.strip_suffix(['"', '\\']).unwrap_or(part);
            text.push_str(plain);
            if plain.len() < part.len() {
                text.push('\\');
                text.push_str(&part[plain.len()..]);
            }
        }
        text.push('"');
    }

    pub fn text_or_null(&mut self, element: Option<&str>) {
        match element {
            Some(element) => self.text(element),
            None => self.begin().push_str("NULL"),
        }
    }

    pub fn uuid(&mut self, uuid: u128) {
        let _ = write!(self.next(), "{uuid:032x}");
    }

    /// Bytes that are at hand as hexadecimal digits.
    pub fn hex(&mut self, digits: &str) {
        let text = self.next();
        text.push_str("\"\\\\x");
        text.push_str(digits);
        text.push('"');
    }

    /// The literal.
    pub fn end(mut self) -> String {
        self.literal.push_str(if self.literal.is_empty() { "{}" } else { "}" });
        self.literal
    }

    /// The literal, or nothing where its elements are all NULL: unnest fills up with those.
    pub fn end_if_told(self, has_elements: bool) -> Option<String> {
        (self.is_told || !has_elements).then(|| self.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_keep_their_quotes_and_backslashes() {
        let mut column = Column::default();
        for element in ["a,\"\\{}", "\\", "", "NULL", "é"] {
            column.text(element);
        }
        column.text_or_null(None);
        assert_eq!(column.end(), r#"{"a,\"\\{}","\\","","NULL","é",NULL}"#);
    }

    #[test]
    fn a_column_of_nulls_says_nothing() {
        let (mut silent, mut told) = (Column::default(), Column::default());
        silent.text_or_null(None);
        told.text_or_null(None);
        told.text_or_null(Some("a"));
        assert_eq!(silent.end_if_told(true), None);
        assert_eq!(Column::default().end_if_told(false).as_deref(), Some("{}"));
        assert_eq!(told.end_if_told(true).as_deref(), Some(r#"{NULL,"a"}"#));
    }

    #[test]
    fn numbers_uuids_and_bytes_are_written_as_postgresql_reads_them() {
        let (mut numbers, mut uuids, mut bytes) =
            (Column::default(), Column::default(), Column::default());
        numbers.number(-1);
        numbers.number(8_999);
        uuids.uuid(0xAB);
        bytes.hex("00ff");
        assert_eq!(numbers.end(), "{-1,8999}");
        assert_eq!(uuids.end(), "{000000000000000000000000000000ab}");
        assert_eq!(bytes.end(), r#"{"\\x00ff"}"#);
        assert_eq!(Column::default().end(), "{}");
    }
}
