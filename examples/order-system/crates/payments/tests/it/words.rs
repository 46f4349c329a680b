//! The provider's words stay in its adapter.

use std::{fs, path::Path};

/// What only the provider calls so, beside the words that it answers.
const IDENTIFIERS: &[&str] = &[
    "psp",
    "shopper",
    "minor_units",
    "CaptureRequest",
    "capture(",
    "void(",
    "voided",
    "conduct",
    "CARD_DECLINED",
];

/// The one word that both have. It is the published reason of a cancelled order, and stands where such things are written, once.
const OURS_AS_WELL: (&str, &str) = ("wire.rs", "pub const DECLINED: &str = \"card_declined\";");

fn source() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))
}

/// All texts that the provider says or is told, as they stand in its source.
fn said() -> Vec<String> {
    let text = fs::read_to_string(source().join("provider/simulated.rs")).unwrap();
    let constant = |line: &str| {
        let (_, value) = line.split_once(": &str = \"")?;
        value.strip_suffix("\";").map(|word| format!("\"{word}\""))
    };
    text.lines().filter_map(constant).collect()
}

fn foreign<'a>(name: &str, text: &str, words: &'a [String]) -> Vec<&'a str> {
    // What is commented is prose.
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let lines = lines.filter(|line| !(name == OURS_AS_WELL.0 && line.trim() == OURS_AS_WELL.1));
    let code: Vec<_> = lines.collect();
    let stands = |word: &&'a str| code.iter().any(|line| line.contains(*word));
    words.iter().map(String::as_str).filter(stands).collect()
}

fn words() -> Vec<String> {
    let words: Vec<_> = said().into_iter().chain(IDENTIFIERS.iter().map(|&word| word.to_owned())).collect();
    assert!(
        words.contains(&"\"card_declined\"".to_owned()) && words.contains(&"\"reference_voided\"".to_owned())
    );
    words
}

#[test]
fn no_module_but_the_adapter_knows_a_word_of_the_provider() {
    let words = words();
    let mut looked_at = 0;
    for entry in fs::read_dir(source()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            assert!(path.ends_with("provider"), "{path:?} is not looked at");
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(foreign(&name, &text, &words), Vec::<&str>::new(), "in {name}");
        looked_at += 1;
    }
    assert!(looked_at >= 7, "{looked_at}");
}

#[test]
fn a_word_that_strays_is_found() {
    let words = words();
    for stray in [
        "if code == \"reference_voided\" {",
        "    Err(\"card_declined\".into())",
        "let amount = request.minor_units;",
        "provider.void(key).await?;",
    ] {
        assert!(!foreign("ledger.rs", stray, &words).is_empty(), "{stray}");
    }
    assert!(!foreign("http.rs", OURS_AS_WELL.1, &words).is_empty(), "only where it is published");
}
