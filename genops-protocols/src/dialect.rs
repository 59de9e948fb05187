//! Dialects.

/// Every name a configuration may give, with the provider it stands for.
const NAMES: &[(&str, &str)] = &[
    ("openai", "openai"),
    ("azure", "azure.ai.openai"),
    ("azure-inference", "azure.ai.inference"),
    ("anthropic", "anthropic"),
    ("gemini", "gcp.gemini"),
    ("vertex", "gcp.vertex_ai"),
    ("bedrock", "aws.bedrock"),
    ("mistral", "mistral_ai"),
    ("cohere", "cohere"),
    ("groq", "groq"),
    ("deepseek", "deepseek"),
    ("xai", "x_ai"),
    ("perplexity", "perplexity"),
    ("together", "together_ai"),
    ("openrouter", "openrouter"),
    ("huggingface", "huggingface"),
    ("ollama", "ollama"),
    ("vllm", "vllm"),
    ("llama-cpp", "llama_cpp"),
    ("watsonx", "ibm.watsonx.ai"),
    ("replicate", "replicate"),
    ("copilot", "github_copilot"),
];

pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    NAMES.iter().map(|&(name, _)| name)
}

pub(crate) fn provider_of_name(name: &str) -> Option<&'static str> {
    NAMES.iter().find(|&&(known, _)| known == name).map(|&(_, provider)| provider)
}
