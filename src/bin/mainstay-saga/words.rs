//! A command line, split into words and options.

/// What is left of a command line.
#[derive(Debug)]
pub struct Words {
    words: std::vec::IntoIter<String>,
    options: Vec<(String, Option<String>)>,
}

/// Options without a value.
const FLAGS: &[&str] = &["json", "open"];
/// Options that may be given more than once.
const MANY: &[&str] = &["phase"];

impl Words {
    /// `--name value`, `--name=value`, and words; behind `--` words only. `None` when help is asked for.
    pub fn split(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let (mut words, mut options) = (Vec::new(), Vec::<(String, Option<String>)>::new());
        while let Some(argument) = arguments.next() {
            let Some(option) = argument.strip_prefix("--") else {
                match argument.as_str() {
                    "-h" => return Ok(None),
                    _ => words.push(argument),
                }
                continue;
            };
            let (name, value) = match option.split_once('=') {
                _ if option.is_empty() => {
                    words.extend(arguments);
                    break;
                }
                _ if option == "help" => return Ok(None),
                Some((name, value)) => (name, Some(value.to_owned())),
                None if FLAGS.contains(&option) => (option, None),
                None => {
                    let value = arguments.next().ok_or_else(|| format!("--{option} needs a value"))?;
                    (option, Some(value))
                }
            };
            if options.iter().any(|(other, _)| other == name) && !MANY.contains(&name) {
                return Err(format!("--{name} is given twice"));
            }
            options.push((name.to_owned(), value));
        }
        Ok(Some(Words { words: words.into_iter(), options }))
    }

    /// Refuses options that a command does not know.
    pub fn allow(&self, command: &str, known: &[&str]) -> Result<(), String> {
        let is_known = |name: &str| ["store", "schema", "ca"].contains(&name) || known.contains(&name);
        match self.options.iter().find(|(name, _)| !is_known(name)) {
            Some((name, _)) => Err(format!("{command} has no option --{name}")),
            None => Ok(()),
        }
    }

    pub fn next(&mut self, what: &str) -> Result<String, String> {
        self.maybe().ok_or_else(|| format!("{what} is missing"))
    }

    pub fn maybe(&mut self) -> Option<String> {
        self.words.next()
    }

    pub fn flag(&self, name: &str) -> bool {
        self.options.iter().any(|(other, _)| other == name)
    }

    pub fn option(&self, name: &str) -> Option<String> {
        self.options(name).into_iter().next()
    }

    pub fn options(&self, name: &str) -> Vec<String> {
        let named = self.options.iter().filter(|(other, _)| other == name);
        named.filter_map(|(_, value)| value.clone()).collect()
    }

    pub fn need(&self, name: &str) -> Result<String, String> {
        self.option(name).ok_or_else(|| format!("--{name} is missing"))
    }

    pub fn end(&mut self) -> Result<(), String> {
        match self.words.next() {
            Some(word) => Err(format!("{word:?} is one word too many")),
            None => Ok(()),
        }
    }
}
