//! Command-line arguments, and how a task fails.

/// A failure in one sentence, and the exit status that goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// 2 for wrong arguments, 1 for what a task found.
    pub status: u8,
    /// The sentence.
    pub message: String,
}

impl Failure {
    /// Wrong arguments.
    pub fn usage(message: String) -> Failure {
        Failure { status: 2, message }
    }

    /// The task did not succeed.
    pub fn task(message: String) -> Failure {
        Failure { status: 1, message }
    }
}

/// What was given: options with a value, options without, and what stands alone.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    values: Vec<(String, String)>,
    flags: Vec<String>,
    /// Arguments that are no option, in order.
    pub words: Vec<String>,
}

impl Parsed {
    /// Splits `args`: each of `with_value` takes the argument after it (or after `=`), each of `flags` stands alone.
    pub fn new(args: &[String], with_value: &[&str], flags: &[&str]) -> Result<Parsed, Failure> {
        let mut parsed = Parsed::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            if !arg.starts_with("--") {
                parsed.words.push(arg.clone());
                continue;
            }
            let (name, inline) = arg.split_once('=').map_or((arg.as_str(), None), |(n, v)| (n, Some(v.to_string())));
            if parsed.values.iter().any(|(n, _)| n == name) || parsed.flags.iter().any(|n| n == name) {
                return Err(Failure::usage(format!("{name} was given twice")));
            }
            if with_value.contains(&name) {
                let value = inline.or_else(|| args.next().cloned()).filter(|v| !v.is_empty());
                let value = value.ok_or_else(|| Failure::usage(format!("{name} needs a value")))?;
                parsed.values.push((name.to_string(), value));
            } else if flags.contains(&name) && inline.is_none() {
                parsed.flags.push(name.to_string());
            } else {
                let known: Vec<&str> = with_value.iter().chain(flags).copied().collect();
                let expected = if known.is_empty() { "none".to_string() } else { known.join(", ") };
                return Err(Failure::usage(format!("unknown option '{arg}': expected one of {expected}")));
            }
        }
        Ok(parsed)
    }

    /// Whether a flag was given.
    pub fn flag(&self, name: &str) -> bool {
        self.flags.iter().any(|f| f == name)
    }

    /// The value of an option.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The value of an option as a count of at least 1.
    pub fn count(&self, name: &str, default: usize) -> Result<usize, Failure> {
        let Some(value) = self.value(name) else { return Ok(default) };
        value
            .parse()
            .ok()
            .filter(|&n| n > 0)
            .ok_or_else(|| Failure::usage(format!("{name}: expected a whole number of at least 1, got '{value}'")))
    }

    /// Refuses more than `most` arguments that are no option.
    pub fn at_most(&self, most: usize) -> Result<(), Failure> {
        self.words.get(most).map_or(Ok(()), |word| Err(Failure::usage(format!("unexpected argument '{word}'"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Parsed, Failure> {
        let args: Vec<String> = args.iter().map(|a| a.to_string()).collect();
        Parsed::new(&args, &["--steps", "--json"], &["--quick"])
    }

    #[test]
    fn options_words_and_flags() {
        let parsed = parse(&["mtp", "--steps", "20", "--json=a.json", "--quick"]).unwrap();
        assert_eq!(parsed.words, ["mtp"]);
        assert_eq!((parsed.count("--steps", 5), parsed.value("--json"), parsed.flag("--quick")), (Ok(20), Some("a.json"), true));
        assert_eq!(parse(&[]).unwrap().count("--steps", 5), Ok(5));
        assert!(parsed.at_most(1).is_ok() && parsed.at_most(0).is_err());
    }

    #[test]
    fn wrong_arguments_are_one_sentence_and_status_2() {
        for bad in [&["--step"][..], &["--steps"], &["--steps="], &["--quick=1"], &["--quick", "--quick"], &["--"]] {
            let failure = parse(bad).unwrap_err();
            assert!(failure.status == 2 && !failure.message.contains('\n'), "{failure:?}");
        }
        for bad in ["0", "-1", "x", "1.5"] {
            assert_eq!(parse(&["--steps", bad]).unwrap().count("--steps", 1).unwrap_err().status, 2);
        }
    }
}
