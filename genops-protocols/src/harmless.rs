//! List of harmless endpoints of providers: no model works there, nothing is billed, and nothing is
//! stored for a model to read later.
//!
//! Every other request to a provider, unknown to the dialects, is decided as unreadable. `GET`,
//! `HEAD` and `OPTIONS` without body and without `Upgrade` are harmless without a line. To add a
//! line, the effect of the endpoint must be documented, and the line must name the source.
//!
//! Not listed, though similar to housekeeping: copying a model under another name (a rule about
//! names would no longer match the model), calling tools by MCP at a provider (some tools start an
//! agent or run a model there), committing files and starting jobs (both can run programs).

use crate::path::Path;

/// Entry of an endpoint in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listed {
    /// May leave undecided, whatever the content.
    Harmless,
    /// Counts tokens: runs nothing and costs nothing, and is decided by the named model and text.
    Counts,
}

use Listed::{Counts, Harmless};

/// Provider (empty: any), method, pattern, entry, source. A pattern with a leading slash is the
/// whole path, any other pattern the end of a path; `*` is a segment or the beginning of a segment,
/// `**` the whole rest.
type Line = (&'static str, &'static str, &'static str, Listed, &'static str);

const LIST: &[Line] = &[
    ("", "DELETE", "/**", Harmless, "RFC 9110 9.3.5: removes what the target names"),
    (
        "",
        "POST",
        "responses/*/cancel",
        Harmless,
        "developers.openai.com/api/reference/resources/responses/methods/cancel",
    ),
    (
        "",
        "POST",
        "batches/*/cancel",
        Harmless,
        "platform.openai.com/docs/api-reference/batch/cancel",
    ),
    (
        "",
        "POST",
        "uploads/*/cancel",
        Harmless,
        "platform.openai.com/docs/api-reference/uploads/cancel",
    ),
    (
        "",
        "POST",
        "fine_tuning/jobs/*/cancel",
        Harmless,
        "platform.openai.com/docs/api-reference/fine-tuning/cancel",
    ),
    (
        "",
        "POST",
        "fine_tuning/jobs/*/pause",
        Harmless,
        "platform.openai.com/docs/api-reference/fine-tuning/pause",
    ),
    (
        "",
        "POST",
        "threads/*/runs/*/cancel",
        Harmless,
        "platform.openai.com/docs/api-reference/runs/cancelRun",
    ),
    (
        "",
        "POST",
        "vector_stores/*/file_batches/*/cancel",
        Harmless,
        "platform.openai.com/docs/api-reference/vector-stores-file-batches/cancelBatch",
    ),
    (
        "",
        "POST",
        "responses/input_tokens",
        Counts,
        "platform.openai.com/docs/api-reference/responses/input-tokens",
    ),
    (
        "",
        "POST",
        "messages/count_tokens",
        Counts,
        "docs.anthropic.com/en/api/messages-count-tokens",
    ),
    (
        "anthropic",
        "POST",
        "messages/batches/*/cancel",
        Harmless,
        "platform.claude.com/docs/en/api/canceling-message-batches",
    ),
    ("gcp.gemini", "POST", "models/*:countTokens", Counts, "ai.google.dev/api/tokens"),
    ("gcp.gemini", "POST", "batches/*:cancel", Harmless, "ai.google.dev/api/batch-api"),
    (
        "gcp.vertex_ai",
        "POST",
        "models/*:countTokens",
        Counts,
        "cloud.google.com/vertex-ai/generative-ai/docs/model-reference/count-tokens",
    ),
    (
        "gcp.vertex_ai",
        "POST",
        "models/*:computeTokens",
        Counts,
        "cloud.google.com/vertex-ai/docs/reference/rest/v1beta1/projects.locations.publishers.models/computeTokens",
    ),
    (
        "gcp.vertex_ai",
        "POST",
        "operations/*:cancel",
        Harmless,
        "cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.operations/cancel",
    ),
    (
        "gcp.vertex_ai",
        "POST",
        "batchPredictionJobs/*:cancel",
        Harmless,
        "cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.batchPredictionJobs/cancel",
    ),
    (
        "aws.bedrock",
        "POST",
        "model/*/count-tokens",
        Counts,
        "docs.aws.amazon.com/bedrock/latest/userguide/count-tokens.html",
    ),
    ("mistral_ai", "POST", "batch/jobs/*/cancel", Harmless, "docs.mistral.ai/api/#tag/batch"),
    ("cohere", "POST", "v1/tokenize", Counts, "docs.cohere.com/reference/tokenize"),
    ("cohere", "POST", "v1/detokenize", Counts, "docs.cohere.com/reference/detokenize"),
    ("cohere", "POST", "v1/check-api-key", Harmless, "docs.cohere.com/reference/checkapikey"),
    (
        "cohere",
        "POST",
        "embed-jobs/*/cancel",
        Harmless,
        "docs.cohere.com/reference/cancel-embed-job",
    ),
    (
        "ibm.watsonx.ai",
        "POST",
        "text/tokenization",
        Counts,
        "cloud.ibm.com/apidocs/watsonx-ai#text-tokenization",
    ),
    (
        "aleph_alpha",
        "POST",
        "/tokenize",
        Counts,
        "docs.rs/aleph-alpha-client, tokenization: the route, by its client",
    ),
    (
        "aleph_alpha",
        "POST",
        "/detokenize",
        Counts,
        "docs.rs/aleph-alpha-client, detokenization: the route, by its client",
    ),
    (
        "replicate",
        "POST",
        "predictions/*/cancel",
        Harmless,
        "replicate.com/docs/reference/http#predictions.cancel",
    ),
    (
        "replicate",
        "POST",
        "trainings/*/cancel",
        Harmless,
        "replicate.com/docs/reference/http#trainings.cancel",
    ),
    (
        "ollama",
        "POST",
        "/api/show",
        Harmless,
        "github.com/ollama/ollama/blob/main/docs/api.md#show-model-information",
    ),
    (
        "ollama",
        "POST",
        "/api/pull",
        Harmless,
        "github.com/ollama/ollama/blob/main/docs/api.md#pull-a-model",
    ),
    (
        "huggingface",
        "POST",
        "/api/repos/create",
        Harmless,
        "huggingface.co/docs/huggingface_hub/package_reference/hf_api, create_repo: names a repository",
    ),
    (
        "huggingface",
        "POST",
        "/api/models/*/*/paths-info/**",
        Harmless,
        "huggingface.co/docs/huggingface_hub/package_reference/hf_api, get_paths_info: lists files",
    ),
    (
        "huggingface",
        "POST",
        "/api/datasets/*/*/paths-info/**",
        Harmless,
        "huggingface.co/docs/huggingface_hub/package_reference/hf_api, get_paths_info: lists files",
    ),
    (
        "huggingface",
        "POST",
        "/api/spaces/*/*/paths-info/**",
        Harmless,
        "huggingface.co/docs/huggingface_hub/package_reference/hf_api, get_paths_info: lists files",
    ),
    (
        "huggingface",
        "POST",
        "info/lfs/objects/batch",
        Harmless,
        "github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md",
    ),
    (
        "openrouter",
        "POST",
        "/api/v1/auth/keys",
        Harmless,
        "openrouter.ai/docs/api/api-reference/oauth/exchange-authorization-code-for-api-key",
    ),
];

/// Returns the list's entry for a request to a provider.
pub(crate) fn listed(provider: &str, method: &str, path: &Path) -> Option<Listed> {
    let fits = |line: &&Line| {
        let (of, verb, pattern, ..) = **line;
        (of.is_empty() || of == provider) && verb == method && matches(pattern, path)
    };
    LIST.iter().find(fits).map(|(_, _, _, listed, _)| *listed)
}

/// Returns whether a path matches a pattern, in any case.
pub(crate) fn matches(pattern: &str, path: &Path) -> bool {
    let segments: Vec<&str> = path.segments().collect();
    let names: Vec<&str> = pattern.split('/').filter(|it| !it.is_empty()).collect();
    let (names, open) = match names.split_last() {
        Some((&"**", before)) => (before, true),
        _ => (names.as_slice(), false),
    };
    let Some(spare) = segments.len().checked_sub(names.len()) else { return false };
    let whole = pattern.starts_with('/');
    if whole && !open && spare > 0 {
        return false;
    }
    let skipped = if whole { 0 } else { spare };
    let fits = |(name, segment): (&&str, &&str)| fits(name, segment);
    names.iter().zip(segments.iter().skip(skipped)).all(fits)
}

fn fits(name: &str, segment: &str) -> bool {
    match name.strip_prefix('*') {
        Some(end) => {
            let at = segment.len().checked_sub(end.len()).filter(|at| *at > 0);
            let tail = at.and_then(|at| segment.get(at..));
            tail.is_some_and(|tail| tail.eq_ignore_ascii_case(end))
        }
        None => name.eq_ignore_ascii_case(segment),
    }
}

/// Splits a line written by an operator, e.g. `POST /files/*`, into method and pattern.
pub(crate) fn parse(line: &str) -> Option<(&str, &str)> {
    let (method, pattern) = line.trim().split_once(' ')?;
    let pattern = pattern.trim();
    let upper = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase());
    let whole = pattern.starts_with('/') && !pattern.contains(['?', ' ', '%']);
    (upper && whole).then_some((method, pattern))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_written_as_it_is_compared_and_says_where_it_is_from() {
        for (_, method, pattern, _, source) in LIST {
            assert!(method.bytes().all(|byte| byte.is_ascii_uppercase()), "{method}");
            assert!(!pattern.is_empty() && !pattern.contains(['?', ' ', '%']), "{pattern}");
            assert!(source.len() > 8, "{pattern}");
        }
    }

    #[track_caller]
    fn check(pattern: &str, path: &str, expected: bool) {
        assert_eq!(matches(pattern, &Path::normalise(path)), expected, "{pattern} {path}");
    }

    #[test]
    fn a_pattern_is_the_whole_path_or_its_end_and_never_more() {
        check("/api/show", "/api/show", true);
        check("/api/show", "/API/Show/", true);
        check("/api/show", "/x/api/show", false);
        check("/api/show", "/api/show/more", false);
        check("batches/*/cancel", "/openai/v1/batches/b_1/cancel", true);
        check("batches/*/cancel", "/v1/batches/cancel", false);
        check("models/*:countTokens", "/v1beta/models/gemini-pro:countTokens", true);
        check("models/*:countTokens", "/v1beta/models/gemini-pro:generateContent", false);
        check("/api/**", "/api/models/a/b", true);
        check("/api/**", "/v1/api/models", false);
        check("/**", "/anything", true);
    }

    #[test]
    fn a_line_of_an_operator_names_a_method_and_a_whole_path() {
        assert_eq!(parse("POST /files/*"), Some(("POST", "/files/*")));
        for wrong in ["/files", "POST", "post /files", "POST files", "POST /a?b", "POST /a b"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
