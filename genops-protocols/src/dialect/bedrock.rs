//! AWS Bedrock: Converse and InvokeModel with streams, for each family of models; agents and
//! knowledge bases. The OpenAI-compatible endpoints of Bedrock use the OpenAI dialect.

use super::anthropic::read_items;
use super::{
    Bodies, Dialect, Endpoint, Paths, Target, anthropic_usage, percent_decode, read_answer,
};
use super::{read_error, read_parameters, set, shared_usage};
use crate::call::{Call, Usage};
use crate::facts::{Facts, Field, List};
use crate::json::schema::{Slot, Split, Want};

#[derive(Debug)]
pub(crate) struct Bedrock;

impl Dialect for Bedrock {
    fn endpoint(&self, target: &Target<'_>) -> Option<Endpoint> {
        if !matches!(target.method, "POST" | "") {
            return None;
        }
        let endpoint = |api, operation| Endpoint::new(&Bedrock, api, operation).of("aws.bedrock");
        let here = target.host_provider == Some("aws.bedrock");
        // An ARN may hold slashes left unencoded by the client.
        let model = target.segments.iter().position(|name| *name == "model");
        let after_model = model.and_then(|at| target.segments.get(at + 1..)).unwrap_or_default();
        match target.segments {
            _ if let [model @ .., action] = after_model
                && !model.is_empty() =>
            {
                let (api, stream) = match *action {
                    "converse" => ("bedrock.converse", false),
                    "converse-stream" => ("bedrock.converse-stream", true),
                    "invoke" => ("bedrock.invoke", false),
                    "invoke-with-response-stream" => ("bedrock.invoke-with-response-stream", true),
                    "invoke-with-bidirectional-stream" => {
                        ("bedrock.invoke-with-bidirectional-stream", true)
                    }
                    _ => return None,
                };
                let model = percent_decode(&model.join("/"));
                Some(endpoint(api, "chat").model(Some(model)).streaming(stream))
            }
            ["async-invoke"] => Some(endpoint("bedrock.async-invoke", "batch")),
            ["agents", ..] if here => Some(endpoint("bedrock.invoke-agent", "invoke_agent")),
            ["knowledgebases", _, "retrieve"] => Some(endpoint("bedrock.retrieve", "retrieval")),
            ["retrieveAndGenerate" | "retrieveAndGenerateStream"] => {
                Some(endpoint("bedrock.retrieve-and-generate", "retrieve_and_generate"))
            }
            ["flows", ..] if here => Some(endpoint("bedrock.invoke-flow", "invoke_agent")),
            _ => None,
        }
    }

    fn request_paths(&self) -> Paths {
        &[REQUEST]
    }

    fn response_paths(&self) -> Paths {
        &[RESPONSE]
    }

    fn confirms(&self, endpoint: &Endpoint, request: &Facts) -> bool {
        let has = |field| request.has(field);
        match endpoint.api {
            "bedrock.converse" | "bedrock.converse-stream" => has(Field::HasMessages),
            "bedrock.async-invoke" => has(Field::ModelId),
            "bedrock.invoke-with-bidirectional-stream" => true,
            "bedrock.invoke" | "bedrock.invoke-with-response-stream" => {
                has(Field::HasMessages)
                    || has(Field::HasPrompt)
                    || has(Field::HasInputText)
                    || has(Field::HasTexts)
            }
            _ => has(Field::HasInputText) || has(Field::HasRetrieval) || has(Field::HasInput),
        }
    }

    fn guess(&self, Bodies { request, response }: &Bodies<'_>) -> Option<Endpoint> {
        let endpoint = |api, operation| Some(Endpoint::new(&Bedrock, api, operation));
        if request.has(Field::HasRetrieval) {
            return if response.has(Field::HasOutput) {
                endpoint("bedrock.retrieve-and-generate", "retrieve_and_generate")
            } else {
                endpoint("bedrock.retrieve", "retrieval")
            };
        }
        let measured = response.has(Field::MetricInput) || response.has(Field::MetricOutput);
        let titan = response.has(Field::TitanInput) || response.has(Field::TitanOutput);
        if measured || titan && request.has(Field::HasInputText) {
            return endpoint("bedrock.invoke", "chat");
        }
        let converse = request.has(Field::HasMessages) && !request.has(Field::Model);
        if converse && (response.has(Field::CamelInput) || response.has(Field::CamelReason)) {
            return endpoint("bedrock.converse", "chat");
        }
        let claude = request.has(Field::AnthropicVersion) && request.has(Field::HasMessages);
        if claude && !request.has(Field::Model) {
            return endpoint("bedrock.invoke", "chat");
        }
        None
    }

    fn read(&self, endpoint: &Endpoint, bodies: &Bodies<'_>, call: &mut Call) {
        let Bodies { request, response } = *bodies;
        read_parameters(request, call);
        read_answer(response, call);
        set(&mut call.request_model, endpoint.model.as_deref().or(request.text(Field::ModelId)));
        call.stream |= endpoint.stream;
        call.usage = usage(response);
        let reasons: Vec<String> = response.list(List::Reasons).map(str::to_owned).collect();
        let choices = std::mem::take(&mut call.finish_reasons);
        let tools = std::mem::take(&mut call.tool_calls);
        read_items(response, call);
        call.tool_calls.splice(..0, tools);
        if let Some(reason) = response.text(Field::CamelReason) {
            call.finish_reasons = vec![reason.to_owned()];
        }
        let stops = response.list(List::ChoiceStops).map(str::to_owned).collect();
        let last = response.text(Field::FinishReason).map(str::to_owned).into_iter().collect();
        for other in [reasons, choices, stops, last] {
            if call.finish_reasons.is_empty() {
                call.finish_reasons = other;
            }
        }
        read_error(response, call);
        if endpoint.api.starts_with("bedrock.invoke") && endpoint.operation == Some("chat") {
            call.operation = Some(operation(request).to_owned());
        }
        if endpoint.api == "bedrock.invoke-agent" {
            call.operation = Some("invoke_agent".to_owned());
        }
    }
}

/// Returns the operation of an InvokeModel request, by the format of the body.
fn operation(request: &Facts) -> &'static str {
    let embeds = request.has(Field::HasTexts)
        || request.has(Field::Dimensions)
        || request.has(Field::HasInputText) && request.has(Field::HasNormalize);
    if request.has(Field::HasMessages) || request.has(Field::HasMessage) {
        "chat"
    } else if embeds {
        "embeddings"
    } else if request.has(Field::HasPrompt) || request.has(Field::HasInputText) {
        "text_completion"
    } else {
        "chat"
    }
}

/// Returns the count of the model family, else the count measured by Bedrock.
fn usage(response: &Facts) -> Usage {
    let count = |fields: &[Field]| fields.iter().find_map(|&field| response.count(field));
    if response.has(Field::InputTokens) {
        return anthropic_usage(response);
    }
    let read = count(&[Field::CamelCacheRead, Field::MetricCacheRead]);
    let written = count(&[Field::CamelCacheWrite, Field::MetricCacheWrite]);
    let input = count(&[
        Field::CamelInput,
        Field::PromptTokens,
        Field::LlamaPrompt,
        Field::TitanInput,
        Field::MetricInput,
    ]);
    let whole = response.has(Field::PromptTokens);
    let cached = if whole { 0 } else { read.unwrap_or(0).saturating_add(written.unwrap_or(0)) };
    Usage {
        input_tokens: input.map(|fresh| fresh.saturating_add(cached)),
        output_tokens: count(&[
            Field::CamelOutput,
            Field::CompletionTokens,
            Field::LlamaOutput,
            Field::TitanOutput,
            Field::MetricOutput,
        ]),
        cache_read_input_tokens: read,
        cache_creation_input_tokens: written,
        total_tokens: count(&[Field::TotalTokens]),
        ..shared_usage(response)
    }
}

const REQUEST: &[(&str, Want)] = &[
    ("messages.**", Want::ProseAnd(Field::HasMessages)),
    ("system.**", Want::ProseAnd(Field::HasSystem)),
    ("prompt.**", Want::ProseAnd(Field::HasPrompt)),
    ("inputText", Want::ProseAnd(Field::HasInputText)),
    ("normalize", Want::Keep(Field::HasNormalize)),
    ("input.text", Want::Prose),
    ("retrievalQuery.**", Want::ProseAnd(Field::HasRetrieval)),
    ("retrieveAndGenerateConfiguration", Want::Keep(Field::HasRetrieval)),
    ("inferenceConfig.maxTokens", Want::Keep(Field::MaxTokens)),
    ("inferenceConfig.max_new_tokens", Want::Keep(Field::MaxTokens)),
    ("inferenceConfig.temperature", Want::Keep(Field::Temperature)),
    ("inferenceConfig.topP", Want::Keep(Field::TopP)),
    ("inferenceConfig.top_p", Want::Keep(Field::TopP)),
    ("inferenceConfig.stopSequences.*", Want::Append(List::Stop)),
    ("toolConfig.**", Want::Prose),
    ("textGenerationConfig.maxTokenCount", Want::Keep(Field::MaxTokens)),
    ("textGenerationConfig.temperature", Want::Keep(Field::Temperature)),
    ("textGenerationConfig.topP", Want::Keep(Field::TopP)),
    ("textGenerationConfig.stopSequences.*", Want::Append(List::Stop)),
    ("max_gen_len", Want::Keep(Field::MaxTokens)),
    ("anthropic_version", Want::Keep(Field::AnthropicVersion)),
    ("maxTokens", Want::Keep(Field::MaxTokens)),
    ("modelId", Want::Keep(Field::ModelId)),
    ("modelInput.**", Want::ProseAnd(Field::HasInput)),
];

const RESPONSE: &[(&str, Want)] = &[
    ("bytes", Want::Base64),
    ("usage.inputTokens", Want::Keep(Field::CamelInput)),
    ("usage.outputTokens", Want::Keep(Field::CamelOutput)),
    ("usage.totalTokens", Want::Keep(Field::TotalTokens)),
    ("usage.cacheReadInputTokens", Want::Keep(Field::CamelCacheRead)),
    ("usage.cacheWriteInputTokens", Want::Keep(Field::CamelCacheWrite)),
    ("usage.cacheReadInputTokenCount", Want::Keep(Field::CamelCacheRead)),
    ("usage.cacheWriteInputTokenCount", Want::Keep(Field::CamelCacheWrite)),
    ("metadata.usage.inputTokens", Want::Keep(Field::CamelInput)),
    ("metadata.usage.outputTokens", Want::Keep(Field::CamelOutput)),
    ("metadata.usage.totalTokens", Want::Keep(Field::TotalTokens)),
    ("metadata.usage.cacheReadInputTokenCount", Want::Keep(Field::CamelCacheRead)),
    ("metadata.usage.cacheWriteInputTokenCount", Want::Keep(Field::CamelCacheWrite)),
    ("stopReason", Want::Keep(Field::CamelReason)),
    ("messageStop.stopReason", Want::Keep(Field::CamelReason)),
    ("output.message.content.*.toolUse", Want::Item(List::Tools)),
    ("output.message.content.*.toolUse.toolUseId", Want::Slot(Slot::Id)),
    ("output.message.content.*.toolUse.name", Want::Slot(Slot::Name)),
    ("output.message.content.*.toolUse.type", Want::Slot(Slot::Type)),
    ("start.toolUse", Want::Item(List::Tools)),
    ("start.toolUse.toolUseId", Want::Slot(Slot::Id)),
    ("start.toolUse.name", Want::Slot(Slot::Name)),
    ("start.toolUse.type", Want::Slot(Slot::Type)),
    ("contentBlockStart.start.toolUse", Want::Item(List::Tools)),
    ("contentBlockStart.start.toolUse.toolUseId", Want::Slot(Slot::Id)),
    ("contentBlockStart.start.toolUse.name", Want::Slot(Slot::Name)),
    ("contentBlockStart.start.toolUse.type", Want::Slot(Slot::Type)),
    ("amazon-bedrock-invocationMetrics.inputTokenCount", Want::Keep(Field::MetricInput)),
    ("amazon-bedrock-invocationMetrics.outputTokenCount", Want::Keep(Field::MetricOutput)),
    (
        "amazon-bedrock-invocationMetrics.cacheReadInputTokenCount",
        Want::Keep(Field::MetricCacheRead),
    ),
    (
        "amazon-bedrock-invocationMetrics.cacheWriteInputTokenCount",
        Want::Keep(Field::MetricCacheWrite),
    ),
    ("inputTextTokenCount", Want::Keep(Field::TitanInput)),
    ("totalOutputTextTokenCount", Want::Keep(Field::TitanOutput)),
    ("results.*.tokenCount", Want::Keep(Field::TitanOutput)),
    ("results.*.completionReason", Want::Append(List::Reasons)),
    ("completionReason", Want::Append(List::Reasons)),
    ("prompt_token_count", Want::Keep(Field::LlamaPrompt)),
    ("generation_token_count", Want::Keep(Field::LlamaOutput)),
    ("generations.*.finish_reason", Want::Append(List::Reasons)),
    ("outputs.*.stop_reason", Want::Append(List::Reasons)),
    ("completions.*.finishReason.reason", Want::Append(List::Reasons)),
    ("choices.*.stop_reason", Want::Append(List::ChoiceStops)),
    ("stop_reason", Want::Keep(Field::StopReason)),
    ("usage.cacheDetails.*", Want::Split(Split::CacheWrite)),
    ("usage.cacheDetails.*.ttl", Want::Slot(Slot::Type)),
    ("usage.cacheDetails.*.inputTokens", Want::Slot(Slot::Count)),
    ("metadata.usage.cacheDetails.*", Want::Split(Split::CacheWrite)),
    ("metadata.usage.cacheDetails.*.ttl", Want::Slot(Slot::Type)),
    ("metadata.usage.cacheDetails.*.inputTokens", Want::Slot(Slot::Count)),
    ("metadata.usage.cacheReadInputTokens", Want::Keep(Field::CamelCacheRead)),
    ("metadata.usage.cacheWriteInputTokens", Want::Keep(Field::CamelCacheWrite)),
    ("delta.text", Want::Written),
    ("delta.toolUse.input", Want::Written),
    ("delta.reasoningContent.text", Want::Written),
    ("output.message.content.*.text", Want::Written),
    ("outputText", Want::Written),
    ("generation", Want::Written),
    ("__type", Want::Keep(Field::ErrorType)),
];
