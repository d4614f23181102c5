//! The `v3` command.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand};
use fp8_gemm::Precision;
use mtp::Sampler;
use v3_model::generate::{GenerateOptions, Generator};
use v3_model::layers::linear::Packing;
use v3_model::text::{Dataset, Tokenizer, check_ids, parse_ids};
#[cfg(feature = "mpi")]
use v3_model::train::ranks;
use v3_model::train::{Job, Ranks, TrainArgs, finish};
use v3_model::{Error, Result, bench_cmd, convert, inspect, place_cmd, schedule_cmd};

/// Train and run DeepSeek-V3-format models.
#[derive(Debug, Parser)]
#[command(name = "v3", version, about, max_term_width = 80)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model on a text
    Train(Box<TrainArgs>),
    /// Continue a prompt
    Generate(GenerateArgs),
    /// Loss, perplexity and bits per byte of a text
    Eval(EvalArgs),
    /// Logits of given token ids
    Logits(IdsArgs),
    /// Loss and gradients of given token ids
    Grad(IdsArgs),
    /// Rewrite a checkpoint in another type
    Convert(convert::ConvertArgs),
    /// Print a pipeline schedule
    Schedule(schedule_cmd::ScheduleArgs),
    /// Place experts on devices
    Place(place_cmd::PlaceArgs),
    /// Measure on this machine
    Bench(bench_cmd::BenchArgs),
}

#[derive(Debug, Args)]
struct GenerateArgs {
    /// Checkpoint directory
    checkpoint: PathBuf,
    /// Text to continue
    #[arg(long, value_name = "TEXT", conflicts_with = "ids")]
    prompt: Option<String>,
    /// Token ids to continue, comma-separated; the new ids are printed on one line
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    ids: Option<String>,
    /// Tokens to add [default: 128, or fewer where the model's positions end]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    max_new_tokens: Option<usize>,
    /// 0 for the most likely token each time
    #[arg(long, value_name = "T", allow_negative_numbers = true, default_value_t = 1.0)]
    temperature: f32,
    /// Keep the fewest most likely tokens whose probabilities reach P
    #[arg(long, value_name = "P", allow_negative_numbers = true, default_value_t = 1.0)]
    top_p: f32,
    /// Keep the K most likely tokens; 0 for all
    #[arg(long, value_name = "K", allow_negative_numbers = true, default_value_t = 0)]
    top_k: usize,
    /// Seed of the choices
    #[arg(long, value_name = "S", allow_negative_numbers = true, default_value_t = 0)]
    seed: u64,
    /// Do not draft with the multi-token-prediction modules
    #[arg(long)]
    no_speculate: bool,
    /// Precision of the linear layers: f32, bf16 or fp8
    #[arg(long, value_name = "NAME", default_value = "f32")]
    precision: String,
}

#[derive(Debug, Args)]
struct EvalArgs {
    /// Checkpoint directory
    checkpoint: PathBuf,
    /// Text
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Most tokens of context [default: 256, or what the model is made for]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seq_len: Option<usize>,
    /// Precision of the linear layers: f32, bf16 or fp8
    #[arg(long, value_name = "NAME", default_value = "f32")]
    precision: String,
}

#[derive(Debug, Args)]
struct IdsArgs {
    /// Checkpoint directory
    checkpoint: PathBuf,
    /// A safetensors file with input_ids, i64 [B, T]
    #[arg(long, value_name = "FILE")]
    ids: PathBuf,
    /// The safetensors file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Precision of the linear layers: f32, bf16 or fp8
    #[arg(long, value_name = "NAME", default_value = "f32")]
    precision: String,
}

fn precision(name: &str) -> Result<Precision> {
    name.parse().map_err(|_| Error::option("--precision", "f32, bf16 or fp8", name))
}

fn train(args: &TrainArgs) -> Result<ExitCode> {
    let (job, outcome) = match Ranks::new(args)? {
        Ranks::Threads => {
            let job = Job::new(args)?;
            let outcome = job.run()?;
            (job, outcome)
        }
        #[cfg(feature = "mpi")]
        Ranks::Mpi(heartbeat) => match ranks::run(args, heartbeat)? {
            ranks::Ended::Done(done) => *done,
            ranks::Ended::Elsewhere { refused } => return Ok(if refused { REFUSED.into() } else { ExitCode::SUCCESS }),
        },
    };
    if let Some((step, what, value)) = outcome.diverged {
        let kept = match outcome.saved_step {
            Some(saved) => format!("the checkpoint of step {saved} in {} is kept", job.out.join("checkpoint").display()),
            None => "no checkpoint had been written yet".into(),
        };
        return Err(Error::Diverged { step, what, value, kept });
    }
    let table = finish::finish(&job, &outcome)?;
    schedule_cmd::print(&format!("{table}\nrun folder: {}\n", job.out.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn generate(args: &GenerateArgs) -> Result<()> {
    if !(args.temperature.is_finite() && args.temperature >= 0.0) {
        return Err(Error::option("--temperature", "a finite number, 0 or more", args.temperature));
    }
    if !(args.top_p > 0.0 && args.top_p <= 1.0) {
        return Err(Error::option("--top-p", "a number above 0, at most 1", args.top_p));
    }
    let sampler = Sampler::new(args.temperature, args.top_k, args.top_p).map_err(Error::piece("mtp"))?;
    let generator = Generator::load(&args.checkpoint, precision(&args.precision)?)?;
    let tokenizer = Tokenizer::open(&args.checkpoint)?;
    let config = &generator.model().config;
    let options = |option: &str, prompt: &[u32]| -> Result<GenerateOptions> {
        let limit = config.max_position_embeddings;
        if prompt.is_empty() {
            return Err(Error::option(option, "at least one token", "none"));
        }
        if prompt.len() > limit {
            return Err(Error::option(option, format!("at most max_position_embeddings = {limit} tokens"), prompt.len()));
        }
        check_ids(option, prompt, config.vocab_size)?;
        let max_new_tokens = args.max_new_tokens.unwrap_or(128.min(limit - prompt.len()));
        Ok(GenerateOptions { max_new_tokens, sampler, seed: args.seed, speculate: !args.no_speculate })
    };
    let generated = match (&args.ids, &args.prompt) {
        (Some(ids), _) => {
            let ids = parse_ids("--ids", ids, config.vocab_size)?;
            let generated = generator.generate(&ids, &options("--ids", &ids)?, |_| Ok(true))?;
            let line: Vec<String> = generated.tokens.iter().map(u32::to_string).collect();
            schedule_cmd::print(&(line.join(",") + "\n"))?;
            generated
        }
        (None, prompt) => {
            let prompt = prompt.as_deref().unwrap_or("\n");
            let ids = tokenizer.encode(prompt)?;
            // Bytes have no token that ends a text.
            let eos = if matches!(tokenizer, Tokenizer::Bytes) { Vec::new() } else { config.eos_token_ids() };
            let mut stream = tokenizer.stream();
            let generated = generator.generate(&ids, &options("--prompt", &ids)?, |token| {
                if eos.contains(&token) {
                    return Ok(false);
                }
                schedule_cmd::print(&stream.push(token)?)?;
                Ok(true)
            })?;
            schedule_cmd::print(&(stream.finish()? + "\n"))?;
            generated
        }
    };
    let mut note =
        format!("{} tokens, {:.1} tokens/s", generated.tokens.len(), generated.tokens.len() as f64 / generated.seconds.max(1e-9));
    if let Some(rate) = generated.acceptance.rate() {
        note += &format!(", {:.1} % of the drafts accepted", 100.0 * rate);
    }
    // A closed stderr is no reason to fail.
    let _ = writeln!(std::io::stderr(), "{note}, cache {} bytes, backend cpu", generated.cache_bytes);
    Ok(())
}

fn eval(args: &EvalArgs) -> Result<()> {
    let mut model = inspect::load(&args.checkpoint, precision(&args.precision)?, Packing::Inference, true)?;
    let tokenizer = Tokenizer::open(&args.checkpoint)?;
    let limit = model.config.max_position_embeddings;
    let seq_len = args.seq_len.unwrap_or(256.min(limit));
    if seq_len == 0 || seq_len > limit {
        return Err(Error::option("--seq-len", format!("1 to {limit}"), seq_len));
    }
    let (tokens, bytes) = Dataset::load_whole(&args.data, &tokenizer, model.config.vocab_size)?;
    let e = inspect::evaluate(&mut model, &tokens, bytes, seq_len)?;
    let mut table = v3_model::report::Table::new();
    table.row("tokens predicted", e.tokens.to_string());
    table.row("loss (nats per token)", format!("{:.5}", e.loss));
    table.row("perplexity", format!("{:.4}", e.perplexity()));
    table.row("bits per byte", format!("{:.5}", e.bits_per_byte));
    let acceptance = e.mtp_acceptance.map_or("no module".into(), |a| format!("{:.2} %", 100.0 * a));
    table.row("greedy drafts that match", acceptance);
    schedule_cmd::print(&table.to_text())
}

fn run(command: &Command) -> Result<ExitCode> {
    let done = match command {
        Command::Train(args) => return train(args),
        Command::Generate(args) => generate(args),
        Command::Eval(args) => eval(args),
        Command::Logits(args) => inspect::logits(&args.checkpoint, &args.ids, &args.out, precision(&args.precision)?),
        Command::Grad(args) => inspect::grad(&args.checkpoint, &args.ids, &args.out, precision(&args.precision)?),
        Command::Convert(args) => convert::run(args),
        Command::Schedule(args) => schedule_cmd::run(args),
        Command::Place(args) => place_cmd::run(args),
        Command::Bench(args) => bench_cmd::run(args),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Has the allocator keep the memory that a training step frees, for the next step: handing hundreds of megabytes back to the
/// system and taking page faults on them again costs a tenth of the step.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_freed_memory() {
    unsafe extern "C" {
        fn mallopt(parameter: std::ffi::c_int, value: std::ffi::c_int) -> std::ffi::c_int;
    }
    const M_TRIM_THRESHOLD: std::ffi::c_int = -1;
    const M_MMAP_THRESHOLD: std::ffi::c_int = -3;
    const M_ARENA_MAX: std::ffi::c_int = -8;
    // SAFETY: the signature is glibc's; these parameters only change what later calls of malloc and free do with free memory.
    // A value that glibc refuses changes nothing.
    unsafe {
        mallopt(M_TRIM_THRESHOLD, std::ffi::c_int::MAX);
        mallopt(M_MMAP_THRESHOLD, 32 << 20);
        mallopt(M_ARENA_MAX, 1);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_freed_memory() {}

/// What is wrong with the command line, in one sentence.
fn usage_error(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(list)) => Some(list.join(", ")),
        _ => None,
    };
    // An argument is called `--steps <N>` or `<OUT>`.
    let argument = context(ContextKind::InvalidArg).map(|arg| {
        let name = arg.split(' ').next().unwrap_or(&arg);
        name.trim_matches(['<', '>', '.', '[', ']']).to_owned()
    });
    if let (Some(option), Some(found)) = (argument, context(ContextKind::InvalidValue)) {
        let source = std::error::Error::source(error);
        let expected = match (error.kind(), source) {
            (ErrorKind::InvalidValue, _) => context(ContextKind::ValidValue).map(|v| format!("one of {v}")),
            (ErrorKind::ValueValidation, Some(e)) => match e.downcast_ref::<std::num::ParseIntError>().map(|e| e.kind()) {
                Some(std::num::IntErrorKind::PosOverflow) => Some("a whole number below 2^64".into()),
                Some(_) => Some("a whole number, 0 or more".into()),
                None if e.is::<std::num::ParseFloatError>() => Some("a number".into()),
                None => return format!("{option}: {e}"),
            },
            _ => None,
        };
        if let Some(expected) = expected.filter(|_| !found.is_empty() || error.kind() == ErrorKind::ValueValidation) {
            return Error::option(option, expected, found).one_line();
        }
    }
    // The first paragraph is the sentence; the rest repeats the usage.
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or(&text).split_whitespace().collect::<Vec<_>>().join(" ");
    first.strip_prefix("error: ").unwrap_or(&first).to_owned()
}

/// The status of a refusal.
const REFUSED: u8 = 2;

/// Ends with the status of a refusal, after one sentence on stderr. That stderr may be closed or full changes nothing.
fn refuse(sentence: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "error: {sentence}");
    REFUSED.into()
}

fn main() -> ExitCode {
    keep_freed_memory();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if !e.use_stderr() => e.exit(),
        Err(e) => return refuse(&usage_error(&e)),
    };
    match run(&cli.command) {
        Ok(code) => code,
        Err(e) => refuse(&e.one_line()),
    }
}
