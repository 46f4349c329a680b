//! Money as whole cents. On the wire it is a decimal text with two places, `"0.30"`; a JSON number is accepted as well.

use std::{fmt, iter::Sum, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An amount of money; never a fraction of a cent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cents(pub i64);

/// Why a text is no amount of money.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no amount of money: at most two decimal places, no exponent")]
pub struct NoMoney(String);

impl Cents {
    /// `None` if it does not fit.
    pub fn times(self, quantity: i64) -> Option<Cents> {
        self.0.checked_mul(quantity).map(Cents)
    }

    /// `None` if it does not fit.
    pub fn plus(self, other: Cents) -> Option<Cents> {
        self.0.checked_add(other.0).map(Cents)
    }
}

impl Sum for Cents {
    /// Saturates.
    fn sum<I: Iterator<Item = Cents>>(amounts: I) -> Cents {
        Cents(amounts.fold(0, |sum, amount| sum.saturating_add(amount.0)))
    }
}

impl fmt::Display for Cents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let cents = self.0.unsigned_abs();
        write!(f, "{sign}{}.{:02}", cents / 100, cents % 100)
    }
}

impl FromStr for Cents {
    type Err = NoMoney;

    fn from_str(text: &str) -> Result<Self, NoMoney> {
        let refused = || NoMoney(text.chars().take(40).collect());
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
        let only_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty()
            || !only_digits(whole)
            || !only_digits(part)
            || (digits.contains('.') && part.is_empty())
        {
            return Err(refused());
        }
        // `0.500` is written by some; `0.505` cannot be paid.
        let part = part.trim_end_matches('0');
        if part.len() > 2 {
            return Err(refused());
        }
        let part: i64 = format!("{part:0<2}").parse().map_err(|_| refused())?;
        let whole: i64 = whole.parse().map_err(|_| refused())?;
        let cents = whole.checked_mul(100).and_then(|cents| cents.checked_add(part)).ok_or_else(refused)?;
        Ok(Cents(if negative { -cents } else { cents }))
    }
}

impl Serialize for Cents {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cents {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Cents;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount of money such as \"12.50\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Cents, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, whole: i64) -> Result<Cents, E> {
                whole
                    .checked_mul(100)
                    .map(Cents)
                    .ok_or_else(|| E::custom("an amount of money that is too large"))
            }

            fn visit_u64<E: de::Error>(self, whole: u64) -> Result<Cents, E> {
                i64::try_from(whole).map_err(E::custom).and_then(|whole| self.visit_i64(whole))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Cents, E> {
                // The shortest text of a number is the one that was written, as long as it has few digits.
                number.to_string().parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl utoipa::PartialSchema for Cents {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        use utoipa::openapi::{ObjectBuilder, schema::Type};
        ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some(r"^-?\d{1,15}(\.\d{1,2})?$"))
            .examples([serde_json::json!("12.50")])
            .build()
            .into()
    }
}

impl utoipa::ToSchema for Cents {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_times_ten_cents_are_thirty() {
        let price: Cents = "0.10".parse().unwrap();
        assert_eq!((0..3).map(|_| price).sum::<Cents>().to_string(), "0.30");
        assert_eq!(price.times(3).unwrap().to_string(), "0.30");
    }

    #[test]
    fn what_is_no_money_is_refused() {
        for text in
            ["", ".", "1.", ".5", "1.005", "1e3", "+1", "--1", "1,50", " 1", "99999999999999999999", "NaN"]
        {
            assert!(text.parse::<Cents>().is_err(), "{text}");
        }
    }

    #[test]
    fn texts_and_numbers_mean_the_same() {
        for json in ["\"12.50\"", "12.5", "12.50", "\"12.5\"", "\"12.500\""] {
            assert_eq!(serde_json::from_str::<Cents>(json).unwrap(), Cents(1_250), "{json}");
        }
        assert_eq!(serde_json::from_str::<Cents>("7").unwrap(), Cents(700));
        assert_eq!(serde_json::to_string(&Cents(-5)).unwrap(), "\"-0.05\"");
        assert!(serde_json::from_str::<Cents>("9223372036854775807").is_err());
    }
}
