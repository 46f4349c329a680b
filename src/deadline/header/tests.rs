use proptest::prelude::*;

use super::*;
use crate::property::{catches, holds};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_finest_unit_that_fits_is_chosen() {
    let cases = [
        (Duration::ZERO, "0n"),
        (Duration::from_nanos(99_999_999), "99999999n"),
        (Duration::from_nanos(100_000_999), "100000u"),
        (99 * SECOND, "99000000u"),
        (100 * SECOND, "100000m"),
        (Duration::from_secs(99_999), "99999000m"),
        (Duration::from_secs(100_000), "100000S"),
        (Duration::from_secs(100_000_030), "1666667M"),
        (Duration::from_secs(60 * 100_000_000 + 59 * 60), "1666667H"),
        (Duration::MAX, "99999999H"),
    ];
    for (left, text) in cases {
        assert_eq!(to_grpc(left), text, "{left:?}");
    }
}

#[test]
fn every_unit_of_grpc_is_read() {
    let cases = [
        ("1H", 3_600 * SECOND),
        ("2M", 120 * SECOND),
        ("3S", 3 * SECOND),
        ("4m", Duration::from_millis(4)),
        ("5u", Duration::from_micros(5)),
        ("6n", Duration::from_nanos(6)),
        ("00000007S", 7 * SECOND),
        ("99999999H", Duration::from_secs(3_600 * 99_999_999)),
    ];
    for (text, left) in cases {
        assert_eq!(from_grpc(text), Ok(left), "{text}");
    }
}

#[test]
fn what_is_no_timeout_is_refused_with_its_name_and_value() {
    for text in
        ["", "S", "1", "1s", "1h", "-1S", "+1S", " 1S", "1S ", "1.5S", "123456789n", "1SS", "٣S", "1é"]
    {
        let error = from_grpc(text).unwrap_err();
        assert_eq!((error.name(), error.value()), (GRPC_TIMEOUT, text));
        assert!(error.to_string().starts_with(&format!("grpc-timeout: {text:?} is not possible")), "{error}");
    }
    for text in ["", "-1", "+1", " 1", "1 ", "1.5", "1ms", "٣", "0x10", "1e3"] {
        let error = from_millis(text).unwrap_err();
        assert_eq!((error.name(), error.value()), (REQUEST_TIMEOUT_MS, text));
    }
    let long = from_millis(&"x".repeat(10_000)).unwrap_err();
    assert_eq!(long.value().len(), 64);
}

#[test]
fn numbers_beyond_all_bounds_saturate() {
    assert_eq!(from_millis(&"9".repeat(1_000)), Ok(Duration::MAX));
    assert_eq!(
        from_millis("18446744073709551615999"),
        Ok(Duration::from_millis(999) + Duration::from_secs(u64::MAX))
    );
    assert_eq!(
        from_millis(&to_millis(Duration::MAX)),
        Ok(Duration::from_millis(999) + Duration::from_secs(u64::MAX))
    );
}

/// Durations of every size.
fn durations() -> impl Strategy<Value = Duration> {
    (any::<u64>(), 0..64_u32, 0..1_000_000_000_u32, any::<bool>()).prop_map(
        |(number, shift, nanos, small)| {
            if small { Duration::from_nanos(number >> shift) } else { Duration::new(number >> shift, nanos) }
        },
    )
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    None,
    RoundsUp,
    NineDigits,
    CoarseUnit,
}

fn encoded(left: Duration, mutant: Mutant) -> String {
    let nanos = left.as_nanos();
    let most = if mutant == Mutant::NineDigits { 999_999_999 } else { MOST };
    let (unit, length) = match mutant {
        Mutant::None => return to_grpc(left),
        Mutant::CoarseUnit => UNITS.into_iter().find(|(_, length)| nanos / length <= 999),
        _ => UNITS.into_iter().find(|(_, length)| nanos / length <= most),
    }
    .unwrap_or(UNITS[5]);
    let count = if mutant == Mutant::RoundsUp { nanos.div_ceil(length) } else { nanos / length };
    format!("{}{unit}", count.min(most))
}

fn comes_back(left: Duration, mutant: Mutant) -> Result<(), TestCaseError> {
    let text = encoded(left, mutant);
    let read = from_grpc(&text).map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert!(read <= left, "{left:?} became {read:?}");
    let longest = Duration::from_secs(3_600 * 99_999_999);
    let one = from_grpc(&format!("1{}", &text[text.len() - 1..])).unwrap();
    prop_assert!(left >= longest || left - read < one, "{left:?} became {read:?}");
    // And there is no finer one with 8 digits.
    prop_assert!(
        left >= longest || one.as_nanos() == 1 || left.as_nanos() / one.as_nanos() * 60 > MOST / 1_000
    );
    let finer = UNITS.iter().rev().map(|&(_, length)| length).find(|&length| length < one.as_nanos());
    prop_assert!(finer.is_none_or(|finer| left.as_nanos() / finer > MOST), "{text} is too coarse");
    Ok(())
}

#[test]
fn the_receiver_has_at_most_one_unit_less_and_never_more() {
    holds(durations(), |left| comes_back(left, Mutant::None));
    holds(durations(), |left| {
        let read = from_millis(&to_millis(left)).unwrap();
        prop_assert!(read <= left && left - read < Duration::from_millis(1));
        Ok(())
    });
}

#[test]
fn the_property_of_the_receiver_finds_every_planted_bug() {
    catches(&[Mutant::RoundsUp, Mutant::NineDigits, Mutant::CoarseUnit], durations, |mutant, left| {
        comes_back(left, mutant)
    });
}

#[test]
fn no_text_makes_it_panic_and_what_is_read_is_what_it_says() {
    let texts = prop_oneof![any::<String>(), "[0-9]{0,12}[HMSmun]?", "[0-9a-zA-Z+. -]{0,10}"];
    holds(texts, |text: String| {
        if let Ok(left) = from_grpc(&text) {
            let again = from_grpc(&to_grpc(left)).unwrap();
            prop_assert!(again <= left);
        }
        if let (Ok(left), 0..20) = (from_millis(&text), text.len()) {
            prop_assert_eq!(to_millis(left).parse::<u128>().unwrap(), text.parse::<u128>().unwrap());
        }
        Ok(())
    });
}

#[test]
fn a_chain_of_hops_only_shrinks() {
    let hops = proptest::collection::vec((any::<bool>(), 0..50_000_u64), 0..20);
    holds((durations(), hops), |(first, hops)| {
        let mut left = first;
        for (grpc, allowance) in hops {
            let sent = left.saturating_sub(Duration::from_micros(allowance));
            let read = if grpc { from_grpc(&to_grpc(sent)) } else { from_millis(&to_millis(sent)) }.unwrap();
            prop_assert!(read <= sent && sent <= left, "{left:?} became {read:?}");
            left = read;
        }
        Ok(())
    });
}
