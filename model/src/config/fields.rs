//! Typed access to the fields of a `config.json`, with errors that name the field.

use serde_json::{Map, Value, json};

use super::{FP8_BLOCK, ScoringFunc, Yarn};
use crate::error::{Error, Result};

/// A JSON value in a few words, for error messages.
pub(super) fn brief(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "an object".into(),
        Value::String(text) if text.chars().count() > 60 => format!("\"{}...\"", text.chars().take(60).collect::<String>()),
        other => other.to_string(),
    }
}

/// Keys of a rotary description that this program computes with.
const ROPE_KEYS: [&str; 9] = [
    "type",
    "rope_type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
];

/// The fields of one object.
pub(super) struct Fields<'a>(pub &'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The value of a field that is there and not null.
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    pub fn present(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    fn integer(&self, name: &str, low: usize, high: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|v| (low..=high).contains(v)) {
            Some(v) => Ok(Some(v)),
            None => Err(Error::config(name, format!("an integer from {low} to {high}"), brief(value))),
        }
    }

    fn required<T>(&self, name: &str, value: Option<T>, what: &str) -> Result<T> {
        value.ok_or_else(|| Error::config(name, what, if self.0.contains_key(name) { "null" } else { "no such field" }))
    }

    /// An integer of at least 1 that must be there.
    pub fn size(&self, name: &str, high: usize) -> Result<usize> {
        let value = self.integer(name, 1, high)?;
        self.required(name, value, "a positive integer")
    }

    /// An integer of at least 0 that must be there.
    pub fn count(&self, name: &str, high: usize) -> Result<usize> {
        let value = self.integer(name, 0, high)?;
        self.required(name, value, "an integer")
    }

    pub fn optional_size(&self, name: &str, high: usize) -> Result<Option<usize>> {
        self.integer(name, 1, high)
    }

    pub fn optional_count(&self, name: &str, high: usize) -> Result<Option<usize>> {
        self.integer(name, 0, high)
    }

    /// An integer of at least 1, or null; the field itself must be there, since its absence has meant different things.
    pub fn nullable_size(&self, name: &str, high: usize) -> Result<Option<usize>> {
        if !self.0.contains_key(name) {
            return Err(Error::config(name, "a positive integer or null", "no such field"));
        }
        self.integer(name, 1, high)
    }

    pub fn optional_number(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64().filter(|v| v.is_finite()) {
            Some(v) => Ok(Some(v)),
            None => Err(Error::config(name, "a number", brief(value))),
        }
    }

    pub fn number(&self, name: &str) -> Result<f64> {
        let value = self.optional_number(name)?;
        self.required(name, value, "a number")
    }

    pub fn optional_bool(&self, name: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| Error::config(name, "true or false", brief(value)))
    }

    fn optional_text(&self, name: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| Error::config(name, "a string", brief(value)))
    }

    /// A derived field, where it is given, equals what it derives from.
    pub fn agrees(&self, name: &str, derived: usize, formula: &str) -> Result<()> {
        match self.get(name) {
            Some(value) if value.as_u64() != Some(derived as u64) => {
                Err(Error::config(name, format!("{formula} = {derived}"), brief(value)))
            }
            _ => Ok(()),
        }
    }

    /// Refuses by name what would change results and is not implemented.
    pub fn supported_model(&self) -> Result<()> {
        let model_type = self.optional_text("model_type")?.unwrap_or("deepseek_v3");
        let architecture = self.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
        if model_type != "deepseek_v3" && architecture != Some("DeepseekV3ForCausalLM") {
            return Err(Error::config("model_type", "\"deepseek_v3\"", format!("\"{model_type}\"")));
        }
        for (field, only) in [("hidden_act", "silu"), ("topk_method", "noaux_tc")] {
            if let Some(found) = self.optional_text(field)?
                && found != only
            {
                return Err(Error::config(field, format!("\"{only}\", the only one supported"), format!("\"{found}\"")));
            }
        }
        for field in ["attention_bias", "tie_word_embeddings"] {
            if self.optional_bool(field)? == Some(true) {
                return Err(Error::config(field, "false, the only value supported", "true"));
            }
        }
        if let Some(dropout) = self.optional_number("attention_dropout")?
            && dropout != 0.0
        {
            return Err(Error::config("attention_dropout", "0, the only value supported", dropout));
        }
        self.supported_quantization()
    }

    fn supported_quantization(&self) -> Result<()> {
        let name = "quantization_config";
        let Some(value) = self.get(name) else { return Ok(()) };
        let Value::Object(map) = value else {
            return Err(Error::config(name, "an object", brief(value)));
        };
        let quantization = Fields(map);
        let nested = |field: &str| format!("{name}.{field}");
        for (field, only) in [("quant_method", "fp8"), ("fmt", "e4m3")] {
            let found = quantization.optional_text(field)?;
            if found.is_some_and(|f| f != only) || (found.is_none() && field == "quant_method") {
                let found = found.map_or("no such field".into(), |f| format!("\"{f}\""));
                return Err(Error::config(nested(field), format!("\"{only}\", the only one supported"), found));
            }
        }
        if quantization.get("weight_block_size") != Some(&json!([FP8_BLOCK, FP8_BLOCK])) {
            let found = map.get("weight_block_size").map_or("no such field".into(), Value::to_string);
            return Err(Error::config(nested("weight_block_size"), format!("[{FP8_BLOCK}, {FP8_BLOCK}]"), found));
        }
        Ok(())
    }

    pub fn scoring_func(&self) -> Result<ScoringFunc> {
        match self.optional_text("scoring_func")? {
            None | Some("sigmoid") => Ok(ScoringFunc::Sigmoid),
            Some("softmax") => Ok(ScoringFunc::Softmax),
            Some(other) => Err(Error::config("scoring_func", "\"sigmoid\" or \"softmax\"", format!("\"{other}\""))),
        }
    }

    /// Base and extension of the rotary embedding, in either spelling; where both are given they must agree.
    pub fn rope(&self) -> Result<(f64, Option<Yarn>)> {
        let published_theta = self.optional_number("rope_theta")?;
        let published = self.rope_object("rope_scaling")?;
        let Some((theta, yarn)) = self.rope_object("rope_parameters")? else {
            return Ok((published_theta.unwrap_or(10000.0), published.and_then(|(_, yarn)| yarn)));
        };
        let theta = theta
            .or(published_theta)
            .ok_or_else(|| Error::config("rope_parameters.rope_theta", "a positive number", "no such field"))?;
        if let Some(published_theta) = published_theta.filter(|t| *t != theta) {
            return Err(Error::config("rope_theta", format!("rope_parameters.rope_theta = {theta}"), published_theta));
        }
        if published.is_some_and(|(_, other)| other != yarn) {
            return Err(Error::config("rope_scaling", "what rope_parameters says", "something else"));
        }
        Ok((theta, yarn))
    }

    fn rope_object(&self, name: &str) -> Result<Option<(Option<f64>, Option<Yarn>)>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let Value::Object(map) = value else {
            return Err(Error::config(name, "an object", brief(value)));
        };
        let prefixed = |e: Error| match e {
            Error::Config { path, field, expected, found } => {
                Error::Config { path, field: format!("{name}.{field}"), expected, found }
            }
            other => other,
        };
        Fields(map).rope_fields().map(Some).map_err(prefixed)
    }

    fn rope_fields(&self) -> Result<(Option<f64>, Option<Yarn>)> {
        for (key, value) in self.0 {
            let harmless = value.is_null()
                || (key == "truncate" && *value == json!(true))
                || (key == "partial_rotary_factor" && value.as_f64() == Some(1.0));
            if !ROPE_KEYS.contains(&key.as_str()) && !harmless {
                return Err(Error::config(key, "no such field, which is not supported", brief(value)));
            }
        }
        let theta = self.optional_number("rope_theta")?;
        let kind = match self.optional_text("rope_type")? {
            Some(kind) => Some(kind),
            None => self.optional_text("type")?,
        };
        match kind {
            Some("default") => Ok((theta, None)),
            Some("yarn") => {
                let yarn = Yarn {
                    factor: self.number("factor")?,
                    original_max_position_embeddings: self.size("original_max_position_embeddings", u32::MAX as usize)?,
                    beta_fast: self.optional_number("beta_fast")?.unwrap_or(32.0),
                    beta_slow: self.optional_number("beta_slow")?.unwrap_or(1.0),
                    mscale: self.optional_number("mscale")?.unwrap_or(1.0),
                    mscale_all_dim: self.optional_number("mscale_all_dim")?.unwrap_or(0.0),
                };
                Ok((theta, Some(yarn)))
            }
            Some(other) => Err(Error::config("rope_type", "\"default\" or \"yarn\"", format!("\"{other}\""))),
            None => Err(Error::config("rope_type", "\"default\" or \"yarn\"", "no such field")),
        }
    }
}

/// Writes the rotary embedding in the spelling that `map` already uses, or in the published one.
pub(super) fn write_rope(map: &mut Map<String, Value>, theta: f64, yarn: Option<&Yarn>) {
    let describe = |kind_key: &str, yarn: &Yarn| {
        json!({
            kind_key: "yarn",
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_max_position_embeddings,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "mscale": yarn.mscale,
            "mscale_all_dim": yarn.mscale_all_dim,
        })
    };
    let newer = map.get("rope_parameters").is_some_and(|v| !v.is_null());
    if newer {
        let mut parameters = yarn.map_or_else(|| json!({"rope_type": "default"}), |y| describe("rope_type", y));
        parameters["rope_theta"] = json!(theta);
        map.insert("rope_parameters".into(), parameters);
    }
    if !newer || map.contains_key("rope_theta") {
        map.insert("rope_theta".into(), json!(theta));
    }
    if !newer || map.get("rope_scaling").is_some_and(|v| !v.is_null()) {
        map.insert("rope_scaling".into(), yarn.map_or(Value::Null, |y| describe("type", y)));
    }
}
