//! Google's API, as Gemini and as Vertex AI: generation in whole, SSE and JSON array form,
//! embeddings, interactions.

use super::{
    Bodies, Dialect, Endpoint, Messages, Paths, Target, percent_decode, read_answer, read_error,
};
use super::{read_parameters, set, shared_usage};
use crate::call::{Call, Usage};
use crate::facts::{Facts, Field, List};
use crate::json::schema::{Slot, Split, Want};

#[derive(Debug)]
pub(crate) struct Gemini;

impl Dialect for Gemini {
    fn endpoint(&self, target: &Target<'_>) -> Option<Endpoint> {
        if matches!(target.method, "GET" | "CONNECT")
            && target.segments.last().is_some_and(|name| name.ends_with(".BidiGenerateContent"))
        {
            let live = Endpoint::new(&Gemini, "gemini.live", "generate_content").handshake();
            return Some(live.of("gcp.gemini"));
        }
        if !matches!(target.method, "POST" | "") {
            return None;
        }
        if let [service, method] = target.segments {
            let endpoint = grpc_endpoint(service, method);
            if endpoint.is_some() {
                return endpoint;
            }
        }
        let (last, before) = target.segments.split_last()?;
        let google = target.host_provider.is_some_and(|name| name.starts_with("gcp."));
        if *last == "interactions" && (google || before.last() == Some(&"v1beta")) {
            let endpoint = Endpoint::new(&Gemini, "gemini.interactions", "generate_content");
            return Some(endpoint.of("gcp.gemini"));
        }
        let (model, method) = last.rsplit_once(':').or_else(|| last.rsplit_once("%3A"))?;
        // Code Assist names the model in the body.
        let model = (model != "v1internal").then_some(model);
        let vertex = before.contains(&"locations") || before.contains(&"publishers");
        let (api, operation) = match method {
            "generateContent" => ("gemini.generateContent", "generate_content"),
            "streamGenerateContent" => ("gemini.streamGenerateContent", "generate_content"),
            "embedContent" => ("gemini.embedContent", "embeddings"),
            "batchEmbedContents" => ("gemini.batchEmbedContents", "embeddings"),
            "predict" if vertex => ("vertex.predict", predicts(model.unwrap_or_default())),
            "predictLongRunning" => ("gemini.predictLongRunning", "video_generation"),
            "predict" => ("gemini.predict", predicts(model.unwrap_or_default())),
            "batchGenerateContent" => ("gemini.batchGenerateContent", "batch"),
            "asyncBatchEmbedContent" => ("gemini.asyncBatchEmbedContent", "batch"),
            _ if model.is_none() => {
                let other = Endpoint::new(&Gemini, "gemini.other", "generate_content");
                return google.then(|| other.of("gcp.gemini").harmless());
            }
            _ => return None,
        };
        let region = before.iter().skip_while(|name| **name != "locations").nth(1);
        let endpoint = Endpoint::new(&Gemini, api, operation)
            .of(if vertex { "gcp.vertex_ai" } else { "gcp.gemini" })
            .model(model.map(percent_decode))
            .streaming(method == "streamGenerateContent");
        Some(Endpoint { region: region.map(|name| (*name).to_owned()), ..endpoint })
    }

    fn request_paths(&self) -> Paths {
        &[REQUEST, ENVELOPED_REQUEST]
    }

    fn response_paths(&self) -> Paths {
        &[RESPONSE, ENVELOPED_RESPONSE]
    }

    fn confirms(&self, endpoint: &Endpoint, request: &Facts) -> bool {
        match endpoint.api {
            "gemini.generateContent" | "gemini.streamGenerateContent" => {
                request.has(Field::HasContents)
            }
            "gemini.embedContent" => request.has(Field::HasContent),
            "gemini.batchEmbedContents"
            | "gemini.batchGenerateContent"
            | "gemini.asyncBatchEmbedContent" => request.has(Field::HasRequests),
            "gemini.live" => true,
            "gemini.interactions" => request.has(Field::HasInput) && request.has(Field::Model),
            _ => request.has(Field::HasInstances),
        }
    }

    fn guess(&self, Bodies { request, response }: &Bodies<'_>) -> Option<Endpoint> {
        let endpoint = |api, operation| Some(Endpoint::new(&Gemini, api, operation));
        let answered = response.has(Field::HasCandidates) || response.has(Field::PromptCount);
        let generated =
            answered && (request.has(Field::HasContents) || response.has(Field::ModelVersion));
        let refused = request.has(Field::HasContents) && response.has(Field::ErrorStatus);
        if generated || refused {
            return endpoint("gemini.generateContent", "generate_content");
        }
        if request.has(Field::HasRequests) && response.has(Field::HasEmbeddings) {
            return endpoint("gemini.batchEmbedContents", "embeddings");
        }
        let interaction = response.text(Field::Object) == Some("interaction")
            || response.text(Field::Type).is_some_and(|name| name.starts_with("interaction."));
        if interaction && request.has(Field::HasInput) {
            return endpoint("gemini.interactions", "generate_content");
        }
        None
    }

    fn read(&self, endpoint: &Endpoint, bodies: &Bodies<'_>, call: &mut Call) {
        let Bodies { request, response } = *bodies;
        read_parameters(request, call);
        read_answer(response, call);
        let named =
            request.text(Field::Model).map(|name| name.rsplit("models/").next().unwrap_or(name));
        set(&mut call.request_model, endpoint.model.as_deref().or(named));
        set(&mut call.response_model, response.text(Field::ModelVersion));
        call.stream |= endpoint.stream;
        call.stream_response |= endpoint.stream && response.has(Field::HasCandidates);
        call.usage = usage(endpoint, response);
        if call.finish_reasons.is_empty()
            && let Some(reason) = response.text(Field::BlockReason)
        {
            call.finish_reasons.push(reason.to_owned());
        }
        call.tool_calls.extend(response.list(List::Names).map(str::to_owned));
        if let Some(code) = response.count(Field::FinishCode) {
            let known = usize::try_from(code).ok().and_then(|code| FINISH_REASONS.get(code));
            call.finish_reasons = vec![known.map_or_else(|| code.to_string(), |it| (*it).into())];
        }
        read_error(response, call);
        if endpoint.api == "gemini.interactions" {
            read_interaction(response, call);
        } else if call.error_type.is_some() {
            let status = response.text(Field::ErrorStatus).map(str::to_owned);
            call.error_type = status.or(call.error_type.take());
        }
    }
}

/// Returns the endpoint of a gRPC call of the client libraries.
fn grpc_endpoint(service: &str, method: &str) -> Option<Endpoint> {
    let vertex =
        service.starts_with("google.cloud.aiplatform.") && service.ends_with(".PredictionService");
    let gemini = service.starts_with("google.ai.generativelanguage.")
        && service.ends_with(".GenerativeService");
    let (provider, messages) = match (vertex, gemini) {
        (true, _) => ("gcp.vertex_ai", VERTEX),
        (_, true) => ("gcp.gemini", GENERATIVE),
        _ => return None,
    };
    let (api, stream) = match method {
        "GenerateContent" => ("gemini.generateContent", false),
        "StreamGenerateContent" => ("gemini.streamGenerateContent", true),
        _ => return None,
    };
    let endpoint = Endpoint::new(&Gemini, api, "generate_content").of(provider).streaming(stream);
    Some(Endpoint { grpc: Some(messages), ..endpoint })
}

/// Names of `FinishReason`, by number.
const FINISH_REASONS: [&str; 6] =
    ["FINISH_REASON_UNSPECIFIED", "STOP", "MAX_TOKENS", "SAFETY", "RECITATION", "OTHER"];

/// `google.cloud.aiplatform.v1`: `prediction_service.proto`, `content.proto`.
const VERTEX: Messages = Messages {
    request: &[
        (&[5], Want::Keep(Field::Model)),
        (&[2, 2, 1], Want::ProseAnd(Field::HasContents)),
        (&[8, 2, 1], Want::ProseAnd(Field::HasSystem)),
    ],
    response: &[
        (&[2, 3], Want::Keep(Field::FinishCode)),
        (&[2, 2, 2, 5, 1], Want::Append(List::Names)),
        (&[4, 1], Want::Keep(Field::PromptCount)),
        (&[4, 2], Want::Keep(Field::CandidateCount)),
        (&[4, 3], Want::Keep(Field::TotalTokens)),
        (&[4, 5], Want::Keep(Field::CachedTokens)),
        (&[4, 14], Want::Keep(Field::ThoughtTokens)),
        (&[11], Want::Keep(Field::ModelVersion)),
        (&[13], Want::Keep(Field::Id)),
    ],
};

/// `google.ai.generativelanguage.v1beta`: `generative_service.proto`, `content.proto`.
const GENERATIVE: Messages = Messages {
    request: &[
        (&[1], Want::Keep(Field::Model)),
        (&[2, 1, 2], Want::ProseAnd(Field::HasContents)),
        (&[8, 1, 2], Want::ProseAnd(Field::HasSystem)),
    ],
    response: &[
        (&[1, 2], Want::Keep(Field::FinishCode)),
        (&[1, 1, 1, 4, 1], Want::Append(List::Names)),
        (&[3, 1], Want::Keep(Field::PromptCount)),
        (&[3, 2], Want::Keep(Field::CandidateCount)),
        (&[3, 3], Want::Keep(Field::TotalTokens)),
        (&[3, 4], Want::Keep(Field::CachedTokens)),
        (&[3, 8], Want::Keep(Field::ToolPromptTokens)),
        (&[3, 10], Want::Keep(Field::ThoughtTokens)),
        (&[4], Want::Keep(Field::ModelVersion)),
        (&[5], Want::Keep(Field::Id)),
    ],
};

fn predicts(model: &str) -> &'static str {
    if model.contains("embedding") || model.contains("gecko") {
        "embeddings"
    } else if model.contains("imagen") || model.contains("image") {
        "image_generation"
    } else {
        "generate_content"
    }
}

/// Returns the tokens used. Thoughts are outside of the candidates' count and belong to the output.
fn usage(endpoint: &Endpoint, response: &Facts) -> Usage {
    let thoughts = response.count(Field::ThoughtTokens);
    let candidates = response.count(Field::CandidateCount);
    let tools = response.count(Field::ToolPromptTokens);
    let prompt = response.count(Field::PromptCount);
    let output = match (candidates, thoughts) {
        (None, None) => None,
        (candidates, thoughts) => {
            Some(candidates.unwrap_or(0).saturating_add(thoughts.unwrap_or(0)))
        }
    };
    let embeds = endpoint.operation == Some("embeddings");
    Usage {
        input_tokens: prompt.map(|prompt| prompt.saturating_add(tools.unwrap_or(0))),
        output_tokens: output.filter(|_| !embeds),
        cache_read_input_tokens: response.count(Field::CachedTokens),
        reasoning_output_tokens: thoughts,
        total_tokens: response.count(Field::TotalTokens),
        ..shared_usage(response)
    }
}

fn read_interaction(response: &Facts, call: &mut Call) {
    let status = response.text(Field::Status);
    set(&mut call.response_status, status);
    call.finish_reasons = status.map(str::to_owned).into_iter().collect();
    for list in [List::Output, List::Announced] {
        for item in response.items(list) {
            if let (Some("function_call"), Some(name)) = (item.kind.as_deref(), &item.name) {
                call.tool_calls.push(name.clone());
            }
        }
    }
}

const REQUEST: &[(&str, Want)] = &[
    ("model", Want::Keep(Field::Model)),
    ("contents.**", Want::ProseAnd(Field::HasContents)),
    ("content.**", Want::ProseAnd(Field::HasContent)),
    ("systemInstruction.**", Want::ProseAnd(Field::HasSystem)),
    ("system_instruction.**", Want::ProseAnd(Field::HasSystem)),
    ("instances.**", Want::ProseAnd(Field::HasInstances)),
    ("requests.**", Want::ProseAnd(Field::HasRequests)),
    ("requests.*.model", Want::Keep(Field::Model)),
    ("requests.*.content.**", Want::Prose),
    ("batch.**", Want::ProseAnd(Field::HasRequests)),
    ("request.tools.**", Want::Prose),
    ("generationConfig.temperature", Want::Keep(Field::Temperature)),
    ("generationConfig.topP", Want::Keep(Field::TopP)),
    ("generationConfig.topK", Want::Keep(Field::TopK)),
    ("generationConfig.maxOutputTokens", Want::Keep(Field::MaxTokens)),
    ("generationConfig.candidateCount", Want::Keep(Field::ChoiceCount)),
    ("generationConfig.stopSequences.*", Want::Append(List::Stop)),
    ("generationConfig.seed", Want::Keep(Field::Seed)),
    ("generationConfig.frequencyPenalty", Want::Keep(Field::FrequencyPenalty)),
    ("generationConfig.presencePenalty", Want::Keep(Field::PresencePenalty)),
    ("generationConfig.responseMimeType", Want::Keep(Field::OutputFormat)),
    ("generationConfig.thinkingConfig.thinkingLevel", Want::Keep(Field::ReasoningLevel)),
    ("outputDimensionality", Want::Keep(Field::Dimensions)),
    ("setup.model", Want::Keep(Field::Model)),
    ("setup.systemInstruction.**", Want::ProseAnd(Field::HasSystem)),
    ("clientContent.**", Want::ProseAnd(Field::ClientContent)),
    ("client_content.**", Want::ProseAnd(Field::ClientContent)),
    ("toolResponse.**", Want::ProseAnd(Field::ClientContent)),
    ("realtimeInput.text", Want::Prose),
    ("previous_interaction_id", Want::Keep(Field::PreviousResponse)),
];

const RESPONSE: &[(&str, Want)] = &[
    ("candidates", Want::Keep(Field::HasCandidates)),
    ("candidates.*", Want::Choice),
    ("candidates.*.index", Want::Slot(Slot::ChoiceIndex)),
    ("candidates.*.finishReason", Want::Slot(Slot::Reason)),
    ("candidates.*.content.parts.*.functionCall", Want::Item(List::Tools)),
    ("candidates.*.content.parts.*.functionCall.id", Want::Slot(Slot::Id)),
    ("candidates.*.content.parts.*.functionCall.name", Want::Slot(Slot::Name)),
    ("modelVersion", Want::Keep(Field::ModelVersion)),
    ("responseId", Want::Keep(Field::Id)),
    ("usageMetadata.promptTokenCount", Want::Keep(Field::PromptCount)),
    ("usageMetadata.candidatesTokenCount", Want::Keep(Field::CandidateCount)),
    ("usageMetadata.responseTokenCount", Want::Keep(Field::CandidateCount)),
    ("usageMetadata.totalTokenCount", Want::Keep(Field::TotalTokens)),
    ("usageMetadata.cachedContentTokenCount", Want::Keep(Field::CachedTokens)),
    ("usageMetadata.thoughtsTokenCount", Want::Keep(Field::ThoughtTokens)),
    ("usageMetadata.toolUsePromptTokenCount", Want::Keep(Field::ToolPromptTokens)),
    ("serverContent", Want::Keep(Field::ServerContent)),
    ("serverContent.turnComplete", Want::Keep(Field::TurnComplete)),
    ("toolCall.functionCalls.*", Want::Item(List::Tools)),
    ("toolCall.functionCalls.*.id", Want::Slot(Slot::Id)),
    ("toolCall.functionCalls.*.name", Want::Slot(Slot::Name)),
    ("promptFeedback.blockReason", Want::Keep(Field::BlockReason)),
    ("usageMetadata.promptTokensDetails.*", Want::Split(Split::Input)),
    ("usageMetadata.promptTokensDetails.*.modality", Want::Slot(Slot::Type)),
    ("usageMetadata.promptTokensDetails.*.tokenCount", Want::Slot(Slot::Count)),
    ("usageMetadata.candidatesTokensDetails.*", Want::Split(Split::Output)),
    ("usageMetadata.candidatesTokensDetails.*.modality", Want::Slot(Slot::Type)),
    ("usageMetadata.candidatesTokensDetails.*.tokenCount", Want::Slot(Slot::Count)),
    ("usageMetadata.responseTokensDetails.*", Want::Split(Split::Output)),
    ("usageMetadata.responseTokensDetails.*.modality", Want::Slot(Slot::Type)),
    ("usageMetadata.responseTokensDetails.*.tokenCount", Want::Slot(Slot::Count)),
    ("usageMetadata.cacheTokensDetails.*", Want::Split(Split::CacheRead)),
    ("usageMetadata.cacheTokensDetails.*.modality", Want::Slot(Slot::Type)),
    ("usageMetadata.cacheTokensDetails.*.tokenCount", Want::Slot(Slot::Count)),
    ("candidates.*.content.parts.*.text", Want::Written),
    ("embedding", Want::Keep(Field::HasEmbeddings)),
    ("embeddings", Want::Keep(Field::HasEmbeddings)),
    ("predictions.*.embeddings.statistics.token_count", Want::Add(Field::PromptCount)),
    ("usage.total_input_tokens", Want::Keep(Field::PromptCount)),
    ("usage.total_output_tokens", Want::Keep(Field::CandidateCount)),
    ("usage.total_thought_tokens", Want::Keep(Field::ThoughtTokens)),
    ("usage.total_cached_tokens", Want::Keep(Field::CachedTokens)),
    ("usage.total_tool_use_tokens", Want::Keep(Field::ToolPromptTokens)),
    ("interaction.id", Want::Keep(Field::Id)),
    ("interaction.object", Want::Keep(Field::Object)),
    ("interaction.model", Want::Keep(Field::Model)),
    ("interaction.status", Want::Keep(Field::Status)),
    ("interaction.usage.total_input_tokens", Want::Keep(Field::PromptCount)),
    ("interaction.usage.total_output_tokens", Want::Keep(Field::CandidateCount)),
    ("interaction.usage.total_thought_tokens", Want::Keep(Field::ThoughtTokens)),
    ("interaction.usage.total_cached_tokens", Want::Keep(Field::CachedTokens)),
    ("interaction.usage.total_tool_use_tokens", Want::Keep(Field::ToolPromptTokens)),
    ("steps.*", Want::Item(List::Output)),
    ("steps.*.id", Want::Slot(Slot::Id)),
    ("steps.*.type", Want::Slot(Slot::Type)),
    ("steps.*.name", Want::Slot(Slot::Name)),
    ("step", Want::Item(List::Announced)),
    ("step.id", Want::Slot(Slot::Id)),
    ("step.type", Want::Slot(Slot::Type)),
    ("step.name", Want::Slot(Slot::Name)),
    ("outputs.*", Want::Item(List::Output)),
    ("outputs.*.id", Want::Slot(Slot::Id)),
    ("outputs.*.type", Want::Slot(Slot::Type)),
    ("outputs.*.name", Want::Slot(Slot::Name)),
];

/// As [`REQUEST`], within the envelope of Code Assist.
const ENVELOPED_REQUEST: &[(&str, Want)] = &[
    ("request.contents.**", Want::ProseAnd(Field::HasContents)),
    ("request.systemInstruction.**", Want::ProseAnd(Field::HasSystem)),
    ("request.generationConfig.temperature", Want::Keep(Field::Temperature)),
    ("request.generationConfig.topP", Want::Keep(Field::TopP)),
    ("request.generationConfig.topK", Want::Keep(Field::TopK)),
    ("request.generationConfig.maxOutputTokens", Want::Keep(Field::MaxTokens)),
    ("request.generationConfig.candidateCount", Want::Keep(Field::ChoiceCount)),
    ("request.generationConfig.stopSequences.*", Want::Append(List::Stop)),
    ("request.generationConfig.seed", Want::Keep(Field::Seed)),
    ("request.generationConfig.frequencyPenalty", Want::Keep(Field::FrequencyPenalty)),
    ("request.generationConfig.presencePenalty", Want::Keep(Field::PresencePenalty)),
    ("request.generationConfig.responseMimeType", Want::Keep(Field::OutputFormat)),
    ("request.generationConfig.thinkingConfig.thinkingLevel", Want::Keep(Field::ReasoningLevel)),
];

/// As [`RESPONSE`], within the envelope of Code Assist.
const ENVELOPED_RESPONSE: &[(&str, Want)] = &[
    ("response.candidates", Want::Keep(Field::HasCandidates)),
    ("response.candidates.*", Want::Choice),
    ("response.candidates.*.index", Want::Slot(Slot::ChoiceIndex)),
    ("response.candidates.*.finishReason", Want::Slot(Slot::Reason)),
    ("response.candidates.*.content.parts.*.functionCall", Want::Item(List::Tools)),
    ("response.candidates.*.content.parts.*.functionCall.id", Want::Slot(Slot::Id)),
    ("response.candidates.*.content.parts.*.functionCall.name", Want::Slot(Slot::Name)),
    ("response.modelVersion", Want::Keep(Field::ModelVersion)),
    ("response.responseId", Want::Keep(Field::Id)),
    ("response.usageMetadata.promptTokenCount", Want::Keep(Field::PromptCount)),
    ("response.usageMetadata.candidatesTokenCount", Want::Keep(Field::CandidateCount)),
    ("response.usageMetadata.responseTokenCount", Want::Keep(Field::CandidateCount)),
    ("response.usageMetadata.totalTokenCount", Want::Keep(Field::TotalTokens)),
    ("response.usageMetadata.cachedContentTokenCount", Want::Keep(Field::CachedTokens)),
    ("response.usageMetadata.thoughtsTokenCount", Want::Keep(Field::ThoughtTokens)),
    ("response.usageMetadata.toolUsePromptTokenCount", Want::Keep(Field::ToolPromptTokens)),
    ("response.promptFeedback.blockReason", Want::Keep(Field::BlockReason)),
    ("response.usageMetadata.promptTokensDetails.*", Want::Split(Split::Input)),
    ("response.usageMetadata.promptTokensDetails.*.modality", Want::Slot(Slot::Type)),
    ("response.usageMetadata.promptTokensDetails.*.tokenCount", Want::Slot(Slot::Count)),
    ("response.usageMetadata.candidatesTokensDetails.*", Want::Split(Split::Output)),
    ("response.usageMetadata.candidatesTokensDetails.*.modality", Want::Slot(Slot::Type)),
    ("response.usageMetadata.candidatesTokensDetails.*.tokenCount", Want::Slot(Slot::Count)),
    ("response.usageMetadata.responseTokensDetails.*", Want::Split(Split::Output)),
    ("response.usageMetadata.responseTokensDetails.*.modality", Want::Slot(Slot::Type)),
    ("response.usageMetadata.responseTokensDetails.*.tokenCount", Want::Slot(Slot::Count)),
    ("response.usageMetadata.cacheTokensDetails.*", Want::Split(Split::CacheRead)),
    ("response.usageMetadata.cacheTokensDetails.*.modality", Want::Slot(Slot::Type)),
    ("response.usageMetadata.cacheTokensDetails.*.tokenCount", Want::Slot(Slot::Count)),
    ("response.candidates.*.content.parts.*.text", Want::Written),
];
