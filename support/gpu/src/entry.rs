//! What a PTX text says of a kernel's parameters, for drivers that cannot be asked (before CUDA 12.4).

/// Bytes of each parameter of a kernel; None when the text has no such kernel or declares a parameter in a way not known here.
///
/// Declarations are those of PTX ISA 9.0, section 5.2 ("Types") and 7.1 (`.param` of kernels, `.ptr` attributes).
pub(crate) fn params(ptx: &str, kernel: &str) -> Option<Vec<u32>> {
    let text = without_comments(ptx);
    let mut rest = text.as_str();
    loop {
        let at = rest.find(".entry")?;
        rest = rest.get(at + ".entry".len()..)?;
        if !rest.starts_with(char::is_whitespace) {
            continue;
        }
        let Some(after) = rest.trim_start().strip_prefix(kernel) else { continue };
        if after.starts_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '$')) {
            // The name goes on.
            continue;
        }
        let Some(list) = after.trim_start().strip_prefix('(') else { return Some(vec![]) };
        let list = list.get(..list.find(')')?)?;
        if list.trim().is_empty() {
            return Some(vec![]);
        }
        return list.split(',').map(size).collect();
    }
}

/// Comments are blanks.
fn without_comments(ptx: &str) -> String {
    let mut out = String::with_capacity(ptx.len());
    let mut rest = ptx;
    while let Some(at) = rest.find('/') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let end = if from.starts_with("//") {
            from.find('\n').unwrap_or(from.len())
        } else if from.starts_with("/*") {
            from.get(2..).and_then(|inside| inside.find("*/")).map_or(from.len(), |end| end + 4)
        } else {
            out.push('/');
            rest = from.get(1..).unwrap_or_default();
            continue;
        };
        out.push(' ');
        rest = from.get(end..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// `.param .align 16 .b8 name[640]`, `.param .u64 .ptr .global .align 16 name`.
fn size(declaration: &str) -> Option<u32> {
    let spaced = declaration.replace('[', " [ ").replace(']', " ] ");
    let mut words = spaced.split_whitespace();
    let mut element: Option<u32> = None;
    let mut total: u32 = 1;
    if words.next()? != ".param" {
        return None;
    }
    while let Some(word) = words.next() {
        match word {
            ".align" => _ = words.next()?.parse::<u32>().ok()?,
            ".ptr" | ".global" | ".const" | ".local" | ".shared" | ".generic" => {}
            "[" => {
                total = total.checked_mul(literal(words.next()?)?)?;
                if words.next()? != "]" {
                    return None;
                }
            }
            _ if word.starts_with('.') => {
                element = Some(match word {
                    ".b8" | ".u8" | ".s8" => 1,
                    ".b16" | ".u16" | ".s16" | ".f16" => 2,
                    ".b32" | ".u32" | ".s32" | ".f32" | ".f16x2" => 4,
                    ".b64" | ".u64" | ".s64" | ".f64" => 8,
                    ".b128" => 16,
                    _ => return None,
                });
            }
            _ => {}
        }
    }
    total.checked_mul(element?)
}

/// Decimal, or with 0x, 0b or 0 in front; U behind changes nothing.
fn literal(word: &str) -> Option<u32> {
    let word = word.trim_end_matches('U');
    let digits = |prefix: &str, radix| word.strip_prefix(prefix).map(|rest| u32::from_str_radix(rest, radix).ok());
    if word == "0" {
        return Some(0);
    }
    digits("0x", 16)
        .or_else(|| digits("0X", 16))
        .or_else(|| digits("0b", 2))
        .or_else(|| digits("0", 8))
        .unwrap_or_else(|| word.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::params;

    const PTX: &str = "
// .entry commented(.param .u64 x)
.visible .entry with_more(.param .u64 x, /* .param .u8 y, */ .param .u8 z) { ret; }
.visible .entry with(
    .param .align 128 .b8 with_param_0[640],
    .param .u64 .ptr .global .align 16 with_param_1,
    .param .f32 with_param_2, .param .b8 m[0x4][2]
)
.maxntid 384, 1, 1
{ ret; }
.entry none() { ret; }
.entry bare
{ ret; }
.entry odd(.param .pred p) { ret; }
.entry unfinished(.param .u32 x";

    #[test]
    fn sizes_of_parameters() {
        assert_eq!(params(PTX, "with"), Some(vec![640, 8, 4, 8]));
        assert_eq!(params(PTX, "with_more"), Some(vec![8, 1]));
        assert_eq!(params(PTX, "none"), Some(vec![]));
        assert_eq!(params(PTX, "bare"), Some(vec![]));
        for absent in ["commented", "odd", "unfinished", "wit", "with_mor", "", "é"] {
            assert_eq!(params(PTX, absent), None, "{absent}");
        }
    }

    #[test]
    fn damaged_texts_do_no_harm() {
        for end in 0..PTX.len() {
            let _ = params(&PTX[..end], "with");
            let _ = params(&PTX[end..], "with_more");
        }
        let _ = params("/", "x");
        let _ = params("/*", "x");
        let _ = params(".entry x(.param .align", "x");
        assert_eq!(params(".entry x(.param .b8 a[4294967295][4294967295])", "x"), None);
    }
}
