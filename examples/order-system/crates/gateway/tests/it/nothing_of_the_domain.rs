//! The gateway knows services by name and nothing of what they do.

use std::{fs, path::Path};

/// Words of the business. The names of services and their paths are none: they are addresses.
const WORDS: [&str; 12] = [
    "price", "prices", "quantity", "email", "cents", "stock", "charge", "refund", "amount", "items", "mail",
    "saga",
];
/// What a type of the business would be called.
const TYPES: [&str; 6] = ["Order", "User", "Product", "Payment", "Customer", "Cents"];

/// The first line of code, not of a comment, with such a word in it.
fn finding(source: &str) -> Option<String> {
    let code = source.lines().map(str::trim).filter(|line| !line.starts_with("//"));
    let found = |line: &&str| {
        let mut words = line.split(|it: char| !it.is_ascii_alphanumeric());
        words.any(|word| WORDS.contains(&word.to_ascii_lowercase().as_str()) || TYPES.contains(&word))
    };
    code.clone().find(found).map(str::to_owned)
}

fn all(folder: &Path, visit: &mut dyn FnMut(&Path, &str)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all(&path, visit);
        } else {
            visit(&path, &fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn no_source_speaks_of_the_business() {
    let mut files = 0;
    all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut |path, source| {
        files += 1;
        if let Some(line) = finding(source) {
            panic!("{}: {line}", path.display());
        }
    });
    assert!(files > 10, "{files}");
    assert!(finding("struct Order {\n    id: String,\n}").is_some());
    assert!(finding("    pub price: u64,").is_some());
    assert!(finding("// the price of an order\nlet route = \"/orders\";").is_none());
}

#[test]
fn it_depends_on_no_service() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let ours: Vec<&str> = manifest
        .lines()
        .filter_map(|line| line.split_once(" = ").map(|(name, _)| name))
        .filter(|name| name.starts_with("order-"))
        .collect();
    assert_eq!(ours, ["order-kit", "order-broker"]);
    let dev = manifest.find("[dev-dependencies]").unwrap();
    assert!(manifest.find("order-broker").unwrap() > dev, "the broker is for tests alone");
}
