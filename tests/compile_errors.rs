//! What the compiler says where a service cannot be guarded: it must name the remedy. And what it does not let through in the
//! definition of a saga.
//!
//! Each program is given to the compiler alone, against the libraries that these tests are linked with, which takes a fraction
//! of a second. `compile_fail` examples could not look at the words.
#![cfg(feature = "tower")]
#![allow(missing_docs)]

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const HEAD: &str = r#"
    use std::{io, time::Duration};
    use tower::{Layer, Service, service_fn};

    pub fn is_service<R, S: Service<R>>(_: S) {}
    pub struct NotClone;
    pub fn timeout() -> mainstay::Stack<(mainstay::Timeout, ())> {
        mainstay::stack("files").timeout(Duration::from_secs(1)).build().unwrap()
    }
    pub fn retry() -> mainstay::retry::Config { mainstay::Retry::constant(Duration::from_secs(1)) }
"#;

/// The libraries `name` that lie next to this test, newest first.
fn libraries(directory: &Path, name: &str) -> Vec<PathBuf> {
    let begins = format!("lib{name}-");
    let mut found: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension() == Some(OsStr::new("rlib")))
        .filter(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&begins)))
        .collect();
    found.sort_by_key(|path| std::cmp::Reverse(path.metadata().and_then(|data| data.modified()).ok()));
    found
}

struct Compiler {
    deps: PathBuf,
    mainstay: PathBuf,
    tower: PathBuf,
}

impl Compiler {
    /// With libraries that fit together: a correct program is the proof.
    fn new() -> Self {
        let deps = env::current_exe().unwrap().parent().unwrap().to_owned();
        let mut said = String::new();
        for mainstay in libraries(&deps, "mainstay") {
            for tower in libraries(&deps, "tower") {
                let compiler = Compiler { deps: deps.clone(), mainstay: mainstay.clone(), tower };
                match compiler.says(CORRECT) {
                    None => return compiler,
                    Some(message) => said = message,
                }
            }
        }
        panic!("no libraries in {deps:?} with which a correct program compiles: {said}");
    }

    /// What is wrong with `program`, or nothing.
    fn says(&self, program: &str) -> Option<String> {
        let directory = tempfile();
        let source = directory.join("program.rs");
        fs::write(&source, format!("{HEAD}\n pub fn program() {{ {program} }}")).unwrap();
        let output = Command::new(env::var_os("RUSTC").unwrap_or("rustc".into()))
            .args(["--edition=2024", "--crate-type=lib", "--emit=metadata", "--out-dir"])
            .arg(&directory)
            .arg("-L")
            .arg(format!("dependency={}", self.deps.display()))
            .arg("--extern")
            .arg(format!("mainstay={}", self.mainstay.display()))
            .arg("--extern")
            .arg(format!("tower={}", self.tower.display()))
            .arg(source)
            .output()
            .unwrap();
        fs::remove_dir_all(directory).unwrap();
        (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// A new directory for one run of the compiler.
fn tempfile() -> PathBuf {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("compile-errors-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&directory).unwrap();
    directory
}

const CORRECT: &str = r#"
    let files = service_fn(|_: ()| async { Err::<(), _>(io::Error::from(io::ErrorKind::NotFound)) });
    is_service(timeout().lift().layer(files));
    let boxed = service_fn(|_: ()| async { Err::<(), tower::BoxError>("no".into()) });
    is_service(timeout().layer(boxed));
    let single = service_fn(|_: NotClone| async { Err::<(), tower::BoxError>("no".into()) });
    is_service(retry().clone_request(|_: &NotClone| None).build().unwrap().layer(single));
"#;

const FOREIGN_ERROR: &str = r#"
    let files = service_fn(|_: ()| async { Err::<(), _>(io::Error::from(io::ErrorKind::NotFound)) });
    is_service(timeout().layer(files));
"#;

const REQUEST_WITHOUT_A_COPY: &str = r#"
    let single = service_fn(|_: NotClone| async { Err::<(), tower::BoxError>("no".into()) });
    is_service(retry().build().unwrap().layer(single));
"#;

#[test]
fn the_compiler_names_the_remedy() {
    let compiler = Compiler::new();
    let foreign = compiler.says(FOREIGN_ERROR).expect("an error that cannot hold a refusal must not compile");
    for words in [
        "a refusal cannot be turned into the service's error type `std::io::Error`",
        "implement `From<mainstay::Refused>` for your own error type",
        "use `stack.lift()` as the layer: the error becomes `mainstay::Error<std::io::Error>`",
    ] {
        assert!(foreign.contains(words), "{words:?} is not in:\n{foreign}");
    }

    let copy =
        compiler.says(REQUEST_WITHOUT_A_COPY).expect("a request that cannot be copied must not compile");
    for words in ["requests of the type `NotClone` cannot be copied for another attempt", ".clone_request("] {
        assert!(copy.contains(words), "{words:?} is not in:\n{copy}");
    }
}

/// A correct definition with one place left open.
#[cfg(feature = "saga")]
fn definition(place: &str) -> String {
    format!(
        r#"
        use mainstay::saga::{{Failure, Output, Saga, Step}};
        async fn reserve(_: Step<u32>, (): ()) -> Result<u32, Failure> {{ Ok(1) }}
        async fn release(_: Step<u32>, (): (), _: Option<u32>) -> Result<(), Failure> {{ Ok(()) }}
        async fn charge(_: Step<u32>, _: u32) -> Result<(), Failure> {{ Ok(()) }}
        let mut order = Saga::define::<u32>("order", 1);
        {place}
        let _ = order.build(());
        "#
    )
}

#[cfg(feature = "saga")]
#[test]
fn a_definition_without_its_undo_or_with_the_wrong_types_does_not_compile() {
    let compiler = Compiler::new();
    let says = |place: &str| compiler.says(&definition(place));
    let reserved = r#"let reserved = order.step("reserve", (), reserve).compensate(release);"#;
    let correct = format!(r#"{reserved} order.pivot("charge", reserved, charge).add();"#);
    assert_eq!(says(&correct), None, "the definition that the others differ from");

    for (what, place, words) in [
        (
            "an undo that was not said",
            r#"order.step("reserve", (), reserve).add();"#.to_owned(),
            "no method named `add` found for struct `Adding",
        ),
        (
            "the output of a step whose undo was not said",
            r#"let reserved = order.step("reserve", (), reserve); order.pivot("charge", reserved, charge).add();"#
                .to_owned(),
            "`Adding<",
        ),
        (
            "the remedy for it",
            r#"let reserved = order.step("reserve", (), reserve); order.pivot("charge", reserved, charge).add();"#
                .to_owned(),
            "end the step with `.compensate(..)` or `.without_compensation(..)`",
        ),
        (
            "a saga that comes to a step whose undo was not said",
            r#"let _ = order.build(order.step("reserve", (), reserve));"#.to_owned(),
            "end the step with `.compensate(..)` or `.without_compensation(..)`",
        ),
        (
            "a step that is given what it does not take",
            r#"order.pivot("charge", (), charge).add();"#.to_owned(),
            "type mismatch in function arguments",
        ),
        (
            "an undo of another output",
            r#"order.step("reserve", (), |_, ()| async { Ok("text".to_owned()) }).compensate(release);"#.to_owned(),
            "type mismatch in function arguments",
        ),
        (
            "an undo of a pivot",
            r#"order.pivot("reserve", (), reserve).compensate(release);"#.to_owned(),
            "no method named `compensate` found for struct `Adding",
        ),
        (
            "a saga that is started with something else",
            r#"order.step("x", (), |step: Step<String>, ()| async { Ok(step.into_input()) }).compensate(|_, (), _| async { Ok(()) });"#
                .to_owned(),
            "type mismatch in closure arguments",
        ),
    ] {
        let said = says(&place).unwrap_or_else(|| panic!("{what} compiles"));
        assert!(said.contains(words), "{what}: {words:?} is not in:\n{said}");
    }
}
