//! OpenAI's API, and everything compatible with it: Azure, Groq, DeepSeek, xAI, Perplexity,
//! Together, OpenRouter, Mistral, GitHub Copilot, vLLM, llama.cpp and the many others.

use super::{Bodies, Dialect, Endpoint, Paths, Target, openai_usage, read_answer, read_error};
use super::{add_reasoning, percent_decode, read_parameters, set};
use crate::call::{Call, Usage};
use crate::facts::{Facts, Field, List};
use crate::json::schema::{Slot, Want};

#[derive(Debug)]
pub(crate) struct OpenAi;

impl Dialect for OpenAi {
    fn endpoint(&self, target: &Target<'_>) -> Option<Endpoint> {
        // Azure's paths name the deployment, requested by the client in place of a model.
        let mut after = target.segments.iter().skip_while(|name| **name != "deployments");
        let deployment = after.nth(1).map(|name| percent_decode(name));
        let endpoint =
            |api, operation| Some(Endpoint::new(&OpenAi, api, operation).model(deployment.clone()));
        if let Some(partner) = vertex_partner(target) {
            return Some(partner);
        }
        if let Some(native) = native(target) {
            return Some(native);
        }
        let azure = deployment.is_some() && target.segments.contains(&"openai");
        let endpoint = |api, operation| {
            let endpoint: Option<Endpoint> = endpoint(api, operation);
            // Only Azure has these paths, whatever host stands in front.
            if azure { endpoint.map(|it| it.of("azure.ai.openai")) } else { endpoint }
        };
        match (target.method, target.segments) {
            // Handshake of a connection with turns as calls.
            ("GET" | "CONNECT", [.., "realtime"]) => {
                endpoint("openai.realtime", "chat").map(Endpoint::handshake)
            }
            ("GET" | "CONNECT", [.., "responses"]) => {
                endpoint("openai.responses", "chat").map(Endpoint::handshake)
            }
            ("POST" | "", segments) => match segments {
                [.., "chat", "completions"] | [.., "prompts", _, "completions"] => {
                    endpoint("openai.chat", "chat")
                }
                [.., "chat"] if target.host_provider == Some("writer") => {
                    endpoint("openai.chat", "chat")
                }
                [.., "completions"] => endpoint("openai.completions", "text_completion"),
                [.., "responses"] => endpoint("openai.responses", "chat"),
                [.., "responses", "compact"] => endpoint("openai.responses.compact", "compact"),
                [.., "embeddings"] => endpoint("openai.embeddings", "embeddings"),
                [.., "images", "generations" | "edits" | "variations"] => {
                    endpoint("openai.images", "image_generation")
                }
                [.., "audio", "speech"] => endpoint("openai.audio.speech", "text_to_speech"),
                [.., "audio", "transcriptions"] => {
                    endpoint("openai.audio.transcriptions", "audio_transcription")
                }
                [.., "audio", "translations"] => {
                    endpoint("openai.audio.translations", "audio_translation")
                }
                [.., "moderations"] => endpoint("openai.moderations", "moderation"),
                [.., "assistants"] => endpoint("openai.assistants", "create_agent"),
                [.., "threads", _, "runs"] | [.., "threads", "runs"] => {
                    endpoint("openai.runs", "invoke_agent")
                }
                [
                    ..,
                    "realtime",
                    "sessions" | "client_secrets" | "calls" | "transcription_sessions",
                ] => endpoint("openai.realtime.sessions", "realtime_session"),
                [.., "fine_tuning", "jobs"] | [.., "fine-tunes"] => {
                    endpoint("openai.fine_tuning", "fine_tune")
                }
                [.., "batches"] | [.., "batch", "jobs"] => endpoint("openai.batches", "batch"),
                [.., "videos"]
                | [.., "videos", _, "remix"]
                | [.., "videos", "generations" | "edits" | "extensions"] => {
                    endpoint("openai.videos", "video_generation")
                }
                [.., "vector_stores", _, "search"] => {
                    endpoint("openai.vector_store_search", "retrieval")
                }
                _ => None,
            },
            _ => None,
        }
    }

    fn request_paths(&self) -> Paths {
        &[REQUEST]
    }

    fn response_paths(&self) -> Paths {
        &[OWN, &USAGE, &RESPONSE_USAGE, &CHOICE_USAGE, &GROQ_USAGE]
    }

    fn confirms(&self, endpoint: &Endpoint, request: &Facts) -> bool {
        let has = |field| request.has(field);
        match endpoint.api {
            "openai.chat" => has(Field::HasMessages),
            "openai.completions" => has(Field::HasPrompt),
            "openai.responses" | "openai.responses.compact" => {
                has(Field::HasInput) || has(Field::PreviousResponse) && has(Field::Model)
            }
            "openai.realtime" => true,
            "openai.audio.transcriptions" | "openai.audio.translations" => {
                has(Field::HasFile) && has(Field::Model)
            }
            "openai.images" => has(Field::HasPrompt) || has(Field::HasFile),
            "openai.embeddings" | "openai.moderations" | "openai.audio.speech" => {
                has(Field::HasInput)
            }
            _ => false,
        }
    }

    fn guess(&self, Bodies { request, response }: &Bodies<'_>) -> Option<Endpoint> {
        let endpoint = |api, operation| Some(Endpoint::new(&OpenAi, api, operation));
        let object = response.text(Field::Object).unwrap_or_default();
        let asked = |field| request.has(field);
        match object {
            "chat.completion" | "chat.completion.chunk" => endpoint("openai.chat", "chat"),
            "text_completion" => endpoint("openai.completions", "text_completion"),
            "response" if asked(Field::HasInput) || response.has(Field::HasOutput) => {
                endpoint("openai.responses", "chat")
            }
            "list" if asked(Field::HasInput) && response.has(Field::HasData) => {
                endpoint("openai.embeddings", "embeddings")
            }
            "thread.run" if asked(Field::HasAssistant) => endpoint("openai.runs", "invoke_agent"),
            "assistant" if asked(Field::Model) => endpoint("openai.assistants", "create_agent"),
            _ if !asked(Field::Model) => None,
            _ if asked(Field::HasMessages) && response.has(Field::HasChoices) => {
                endpoint("openai.chat", "chat")
            }
            _ if asked(Field::HasVoice) && asked(Field::HasInput) => {
                endpoint("openai.audio.speech", "text_to_speech")
            }
            _ if asked(Field::HasInput)
                && response.text(Field::Type) == Some("response.created") =>
            {
                endpoint("openai.responses", "chat")
            }
            _ if asked(Field::HasInput) && response.has(Field::HasData) => {
                endpoint("openai.embeddings", "embeddings")
            }
            _ => None,
        }
    }

    fn read(&self, endpoint: &Endpoint, bodies: &Bodies<'_>, call: &mut Call) {
        let Bodies { request, response } = *bodies;
        read_parameters(request, call);
        read_answer(response, call);
        set(&mut call.request_model, request.text(Field::Model).or(endpoint.model.as_deref()));
        call.stream |= endpoint.stream;
        call.usage = openai_usage(response);
        // xAI's chat counts reasoning beside the answer, the Responses API within the answer.
        let provider = call.provider.as_deref().unwrap_or_default();
        let google = provider.starts_with("gcp.");
        let apart = provider == "x_ai" && endpoint.api == "openai.chat";
        if google && endpoint.api == "openai.chat" {
            count_thoughts(&mut call.usage);
        }
        read_error(response, call);
        // An answer failed half-way has partial counts, left as reported.
        if call.error_type.is_none() {
            add_reasoning(&mut call.usage, apart);
        }
        match endpoint.api {
            "openai.batches" | "openai.fine_tuning" | "openai.realtime.sessions" => {
                call.usage = Usage::default();
            }
            "dashscope.generation" | "dashscope.apps" => {
                set(&mut call.response_id, response.text(Field::ResponseId));
                let reason = response.text(Field::FinishReason).filter(|it| *it != "null");
                if call.finish_reasons.is_empty() {
                    call.finish_reasons = reason.map(str::to_owned).into_iter().collect();
                }
            }
            "mistral.conversations" => read_conversation(response, call),
            "openai.responses" | "openai.responses.compact" | "openai.realtime" => {
                read_response_api(response, call);
            }
            "openai.runs" => set(&mut call.response_status, response.text(Field::Status)),
            "openai.vector_store_search" | "openai.assistants" => call.usage = Usage::default(),
            _ => {}
        }
        if endpoint.operation == Some("embeddings") {
            call.usage.output_tokens = None;
            call.usage.input_tokens = call.usage.input_tokens.or(call.usage.total_tokens);
        }
        read_server(response, call);
    }
}

/// Returns the endpoint of a partner's model on Vertex AI. The bodies have the form of the model's
/// maker: OpenAI's form.
fn vertex_partner(target: &Target<'_>) -> Option<Endpoint> {
    let post = matches!(target.method, "POST" | "");
    let (region, model) = match target.segments {
        [.., "locations", region, "publishers", publisher, "models", model]
            if !matches!(*publisher, "anthropic" | "google") =>
        {
            (*region, *model)
        }
        [.., "locations", region, "endpoints", model] => (*region, *model),
        _ => return None,
    };
    let (model, method) = model.rsplit_once(':').or_else(|| model.rsplit_once("%3A"))?;
    if !post || !matches!(method, "rawPredict" | "streamRawPredict") {
        return None;
    }
    let operation = if model.contains("ocr") { "ocr" } else { "chat" };
    let endpoint = Endpoint::new(&OpenAi, "openai.chat", operation).of("gcp.vertex_ai");
    let model = Some(percent_decode(model));
    let stream = method == "streamRawPredict";
    Some(Endpoint { region: Some(region.to_owned()), ..endpoint.model(model).streaming(stream) })
}

/// Returns the endpoint of a provider's native API, with bodies similar to the compatible API.
fn native(target: &Target<'_>) -> Option<Endpoint> {
    if !matches!(target.method, "POST" | "") {
        return None;
    }
    let (api, operation) = match (target.host_provider?, target.segments) {
        ("mistral_ai", segments) => match segments {
            // Streams have a separate path, ending in an encoded `#stream`.
            [.., "conversations" | "conversations%23stream"]
            | [.., "conversations", _]
            | [.., "conversations", _, "restart" | "restart%23stream"] => {
                ("mistral.conversations", "chat")
            }
            [.., "agents", "completions"] => ("openai.chat", "invoke_agent"),
            [.., "ocr"] => ("mistral.ocr", "ocr"),
            [.., "classifications"] => ("mistral.classifications", "classify"),
            _ => return None,
        },
        ("snowflake", segments) => match segments {
            [.., "cortex", "inference:complete"] => ("openai.chat", "chat"),
            [.., "cortex", "inference:embed"] => ("openai.embeddings", "embeddings"),
            [.., "cortex", "agent:run"] | [.., "agents", _] => ("snowflake.agent", "invoke_agent"),
            [.., "cortex", "analyst", "message"] => ("snowflake.analyst", "invoke_agent"),
            _ => return None,
        },
        ("alibaba_cloud", segments) => match segments {
            [.., "aigc", "text-generation" | "multimodal-generation", "generation"] => {
                ("dashscope.generation", "chat")
            }
            [.., "embeddings", _, "text-embedding" | "multimodal-embedding"] => {
                ("dashscope.embeddings", "embeddings")
            }
            [.., "rerank", "text-rerank", "text-rerank"] => ("dashscope.rerank", "rerank"),
            [.., "aigc", _, "image-synthesis"] => ("dashscope.images", "image_generation"),
            [.., "aigc", _, "video-synthesis"] => ("dashscope.videos", "video_generation"),
            [.., "apps", _, "completion"] => ("dashscope.apps", "invoke_agent"),
            _ => return None,
        },
        ("minimax", [.., "text", "chatcompletion_v2" | "chatcompletion_pro"])
        | ("reka", [.., "chat"]) => ("openai.chat", "chat"),
        ("minimax", [.., "t2a_v2"]) => ("minimax.speech", "text_to_speech"),
        ("minimax", [.., "image_generation"]) => ("minimax.images", "image_generation"),
        ("minimax", [.., "video_generation"]) => ("minimax.videos", "video_generation"),
        ("elevenlabs", [.., "text-to-speech", _] | [.., "text-to-speech", _, "stream"]) => {
            ("elevenlabs.speech", "text_to_speech")
        }
        ("elevenlabs", [.., "speech-to-text"]) => ("elevenlabs.text", "audio_transcription"),
        ("voyageai", [.., "multimodalembeddings" | "contextualizedembeddings"]) => {
            ("openai.embeddings", "embeddings")
        }
        ("jina", [.., "classify"]) => ("jina.classify", "classify"),
        ("perplexity", [.., "async", "chat", "completions"]) => ("perplexity.async", "batch"),
        ("stability_ai", [.., "generate" | "edit" | "upscale", _]) => {
            ("stability.images", "image_generation")
        }
        ("z_ai", [.., "images", "generations"]) => ("openai.images", "image_generation"),
        _ => return None,
    };
    let endpoint = Endpoint::new(&OpenAi, api, operation);
    let streams = target.segments.last().is_some_and(|it| it.ends_with("stream"));
    Some(endpoint.streaming(streams))
}

/// Counts searches of the web, and of stored files, among the items of an output.
fn read_searches(response: &Facts, list: List, call: &mut Call) {
    let of = |kind: &str, action: &str| {
        let items = response.items(list).filter(|it| it.kind.as_deref() == Some(kind));
        let did = items.filter(|it| it.action.as_deref().is_none_or(|it| it == action));
        Some(did.count() as u64).filter(|count| *count > 0)
    };
    call.usage.web_searches = call.usage.web_searches.or(of("web_search_call", "search"));
    call.usage.file_searches = of("file_search_call", "search");
}

/// Reads items and status of the Responses API.
fn read_response_api(response: &Facts, call: &mut Call) {
    let list =
        if response.items(List::Output).next().is_some() { List::Output } else { List::Announced };
    for item in response.items(list) {
        match (item.kind.as_deref(), &item.name) {
            (Some("function_call" | "custom_tool_call"), Some(name)) => {
                call.tool_calls.push(name.clone());
            }
            (Some(kind), name) => {
                if let Some(tool) = kind.strip_suffix("_call") {
                    call.server_tool_calls.push(name.clone().unwrap_or_else(|| tool.to_owned()));
                }
            }
            _ => {}
        }
    }
    read_searches(response, list, call);
    let status = response.text(Field::Status);
    set(&mut call.response_status, status);
    let reason = match (status, response.text(Field::IncompleteReason)) {
        (Some("completed"), _) => Some("stop"),
        (Some("incomplete"), Some("max_output_tokens")) => Some("length"),
        (Some("incomplete"), reason) => reason,
        (Some("failed" | "cancelled"), _) => Some("error"),
        _ => None,
    };
    call.finish_reasons = reason.map(str::to_owned).into_iter().collect();
}

/// Adds the tokens left out of the answer's count by Google's compatible API, taken from the total.
fn count_thoughts(usage: &mut Usage) {
    if let (Some(input), Some(output), Some(total)) =
        (usage.input_tokens, usage.output_tokens, usage.total_tokens)
        && total > input.saturating_add(output)
    {
        usage.output_tokens = Some(total.saturating_sub(input));
    }
}

/// Reads Mistral's conversations: the conversation and the entries of an output.
fn read_conversation(response: &Facts, call: &mut Call) {
    set(&mut call.conversation_id, response.text(Field::Conversation));
    for item in response.items(List::Output) {
        match (item.kind.as_deref(), &item.name) {
            (Some("function.call"), Some(name)) => call.tool_calls.push(name.clone()),
            (Some("tool.execution"), Some(name)) => call.server_tool_calls.push(name.clone()),
            _ => {}
        }
    }
}

/// Names the provider by the server's mark in answers, if the host names none.
fn read_server(response: &Facts, call: &mut Call) {
    if call.provider.is_some() {
        return;
    }
    let fingerprint = response.text(Field::Fingerprint).unwrap_or_default();
    if fingerprint == "fp_ollama" {
        call.provider = Some("ollama".to_owned());
    } else if response.has(Field::HasTimings) {
        call.provider = Some("llama_cpp".to_owned());
    }
}

const REQUEST: &[(&str, Want)] = &[
    ("model", Want::Keep(Field::Model)),
    ("stream", Want::Keep(Field::Stream)),
    ("max_tokens", Want::Keep(Field::MaxTokens)),
    ("max_completion_tokens", Want::Keep(Field::MaxCompletionTokens)),
    ("max_output_tokens", Want::Keep(Field::MaxCompletionTokens)),
    ("n", Want::Keep(Field::ChoiceCount)),
    ("best_of", Want::Keep(Field::BestOf)),
    // OpenRouter: models to answer if the requested model can't.
    ("models", Want::Append(List::Models)),
    ("models.*", Want::Append(List::Models)),
    ("temperature", Want::Keep(Field::Temperature)),
    ("top_p", Want::Keep(Field::TopP)),
    ("top_k", Want::Keep(Field::TopK)),
    ("frequency_penalty", Want::Keep(Field::FrequencyPenalty)),
    ("presence_penalty", Want::Keep(Field::PresencePenalty)),
    ("seed", Want::Keep(Field::Seed)),
    ("random_seed", Want::Keep(Field::Seed)),
    ("stop", Want::Append(List::Stop)),
    ("stop.*", Want::Append(List::Stop)),
    ("reasoning_effort", Want::Keep(Field::ReasoningLevel)),
    ("reasoning.effort", Want::Keep(Field::ReasoningLevel)),
    ("dimensions", Want::Keep(Field::Dimensions)),
    ("encoding_format", Want::Append(List::EncodingFormats)),
    ("previous_response_id", Want::Keep(Field::PreviousResponse)),
    ("service_tier", Want::Keep(Field::ServiceTier)),
    ("response_format", Want::Keep(Field::OutputFormat)),
    ("response_format.type", Want::Keep(Field::OutputFormat)),
    ("text.format.type", Want::Keep(Field::OutputFormat)),
    ("conversation", Want::Keep(Field::Conversation)),
    ("conversation.id", Want::Keep(Field::Conversation)),
    ("background", Want::Keep(Field::Background)),
    ("assistant_id", Want::Keep(Field::HasAssistant)),
    ("voice", Want::Keep(Field::HasVoice)),
    ("file", Want::Keep(Field::HasFile)),
    ("messages.**", Want::ProseAnd(Field::HasMessages)),
    ("input.**", Want::ProseAnd(Field::HasInput)),
    ("prompt.**", Want::ProseAnd(Field::HasPrompt)),
    ("instructions", Want::Prose),
    ("additional_messages.**", Want::Prose),
    ("suffix", Want::Prose),
    ("metadata.**", Want::Prose),
    ("tools.**", Want::Prose),
    ("functions.**", Want::Prose),
    ("session.instructions", Want::Prose),
    ("session.model", Want::Keep(Field::Model)),
    ("session.input_audio_transcription.model", Want::Keep(Field::Transcriber)),
    ("session.audio.input.transcription.model", Want::Keep(Field::Transcriber)),
    ("item.**", Want::Prose),
    ("response.instructions", Want::Prose),
    ("response.model", Want::Keep(Field::Model)),
    ("type", Want::Keep(Field::Type)),
    ("inputs.**", Want::ProseAnd(Field::HasInputs)),
    ("agent_id", Want::Keep(Field::HasAssistant)),
    ("purpose", Want::Keep(Field::Purpose)),
    ("input.messages.**", Want::ProseAnd(Field::HasMessages)),
    ("parameters.temperature", Want::Keep(Field::Temperature)),
    ("parameters.top_p", Want::Keep(Field::TopP)),
    ("parameters.top_k", Want::Keep(Field::TopK)),
    ("parameters.seed", Want::Keep(Field::Seed)),
    ("parameters.max_tokens", Want::Keep(Field::MaxTokens)),
    ("document.**", Want::ProseAnd(Field::HasDocuments)),
    ("training_file", Want::Keep(Field::HasFile)),
    ("input_file_id", Want::Keep(Field::HasFile)),
];

macro_rules! usage {
    ($prefix:literal) => {
        [
            (concat!($prefix, "usage"), Want::Keep(Field::HasUsage)),
            (concat!($prefix, "usage.prompt_tokens"), Want::Keep(Field::PromptTokens)),
            (concat!($prefix, "usage.completion_tokens"), Want::Keep(Field::CompletionTokens)),
            (concat!($prefix, "usage.input_tokens"), Want::Keep(Field::InputTokens)),
            (concat!($prefix, "usage.output_tokens"), Want::Keep(Field::OutputTokens)),
            (concat!($prefix, "usage.total_tokens"), Want::Keep(Field::TotalTokens)),
            (
                concat!($prefix, "usage.prompt_tokens_details.cached_tokens"),
                Want::Keep(Field::CachedTokens),
            ),
            (
                concat!($prefix, "usage.input_tokens_details.cached_tokens"),
                Want::Keep(Field::CachedTokens),
            ),
            (concat!($prefix, "usage.prompt_cache_hit_tokens"), Want::Keep(Field::CachedTokens)),
            (concat!($prefix, "usage.num_cached_tokens"), Want::Keep(Field::CachedTokens)),
            (
                concat!($prefix, "usage.completion_tokens_details.reasoning_tokens"),
                Want::Keep(Field::ReasoningTokens),
            ),
            (
                concat!($prefix, "usage.output_tokens_details.reasoning_tokens"),
                Want::Keep(Field::ReasoningTokens),
            ),
            (concat!($prefix, "usage.reasoning_tokens"), Want::Keep(Field::ReasoningTokens)),
            (
                concat!($prefix, "usage.prompt_tokens_details.audio_tokens"),
                Want::Keep(Field::AudioInput),
            ),
            (
                concat!($prefix, "usage.input_token_details.audio_tokens"),
                Want::Keep(Field::AudioInput),
            ),
            (
                concat!($prefix, "usage.input_token_details.cached_tokens"),
                Want::Keep(Field::CachedTokens),
            ),
            (
                concat!($prefix, "usage.output_token_details.audio_tokens"),
                Want::Keep(Field::AudioOutput),
            ),
            (
                concat!($prefix, "usage.completion_tokens_details.audio_tokens"),
                Want::Keep(Field::AudioOutput),
            ),
            (
                concat!($prefix, "usage.prompt_tokens_details.cache_write_tokens"),
                Want::Keep(Field::CacheWriteTokens),
            ),
            (
                concat!($prefix, "usage.input_tokens_details.cache_write_tokens"),
                Want::Keep(Field::CacheWriteTokens),
            ),
            (
                concat!($prefix, "usage.input_token_details.cache_write_tokens"),
                Want::Keep(Field::CacheWriteTokens),
            ),
            (
                concat!($prefix, "usage.prompt_tokens_details.cache_creation_tokens"),
                Want::Keep(Field::CacheWriteTokens),
            ),
            (
                concat!($prefix, "usage.prompt_tokens_details.cache_creation_input_tokens"),
                Want::Keep(Field::CacheWriteTokens),
            ),
            (
                concat!($prefix, "usage.input_tokens_details.cache_creation_tokens"),
                Want::Keep(Field::CacheWriteTokens),
            ),
            (
                concat!($prefix, "usage.input_token_details.cached_tokens_details.audio_tokens"),
                Want::Keep(Field::AudioCached),
            ),
            (
                concat!($prefix, "usage.input_token_details.cached_tokens_details.image_tokens"),
                Want::Keep(Field::ImageCached),
            ),
            (
                concat!($prefix, "usage.input_tokens_details.cached_tokens_details.image_tokens"),
                Want::Keep(Field::ImageCached),
            ),
            (
                concat!($prefix, "usage.input_token_details.image_tokens"),
                Want::Keep(Field::ImageInput),
            ),
            (
                concat!($prefix, "usage.input_tokens_details.image_tokens"),
                Want::Keep(Field::ImageInput),
            ),
            (
                concat!($prefix, "usage.prompt_tokens_details.image_tokens"),
                Want::Keep(Field::ImageInput),
            ),
            (
                concat!($prefix, "usage.output_tokens_details.image_tokens"),
                Want::Keep(Field::ImageOutput),
            ),
            (
                concat!($prefix, "usage.completion_tokens_details.image_tokens"),
                Want::Keep(Field::ImageOutput),
            ),
            (
                concat!($prefix, "usage.input_tokens_details.audio_tokens"),
                Want::Keep(Field::AudioInput),
            ),
            (
                concat!($prefix, "usage.input_tokens_details.cache_read_input_tokens"),
                Want::Keep(Field::CachedTokens),
            ),
            (concat!($prefix, "usage.citation_tokens"), Want::Keep(Field::CitationTokens)),
            (concat!($prefix, "usage.num_search_queries"), Want::Keep(Field::Searches)),
            (
                concat!($prefix, "usage.tool_calls_details.search_web.invocation"),
                Want::Keep(Field::Searches),
            ),
            (concat!($prefix, "usage.seconds"), Want::Keep(Field::AudioSeconds)),
            (concat!($prefix, "usage.prompt_audio_seconds"), Want::Keep(Field::AudioSeconds)),
            (concat!($prefix, "usage.audio_seconds"), Want::Keep(Field::AudioSeconds)),
        ]
    };
}

const USAGE: [(&str, Want); 40] = usage!("");
const RESPONSE_USAGE: [(&str, Want); 40] = usage!("response.");
const CHOICE_USAGE: [(&str, Want); 40] = usage!("choices.*.");
const GROQ_USAGE: [(&str, Want); 40] = usage!("x_groq.");

const OWN: &[(&str, Want)] = &[
    ("id", Want::Keep(Field::Id)),
    ("object", Want::Keep(Field::Object)),
    ("type", Want::Keep(Field::Type)),
    ("model", Want::Keep(Field::Model)),
    ("status", Want::Keep(Field::Status)),
    ("service_tier", Want::Keep(Field::ServiceTier)),
    ("system_fingerprint", Want::Keep(Field::Fingerprint)),
    ("timings", Want::Keep(Field::HasTimings)),
    ("data", Want::Keep(Field::HasData)),
    ("choices", Want::Keep(Field::HasChoices)),
    ("choices.*", Want::Choice),
    ("choices.*.index", Want::Slot(Slot::ChoiceIndex)),
    ("choices.*.finish_reason", Want::Slot(Slot::Reason)),
    ("choices.*.message.tool_calls.*", Want::Item(List::Tools)),
    ("choices.*.message.tool_calls.*.id", Want::Slot(Slot::Id)),
    ("choices.*.message.tool_calls.*.index", Want::Slot(Slot::Index)),
    ("choices.*.message.tool_calls.*.function.name", Want::Slot(Slot::Name)),
    ("choices.*.message.tool_calls.*.custom.name", Want::Slot(Slot::Name)),
    ("choices.*.delta.tool_calls.*", Want::Item(List::Tools)),
    ("choices.*.delta.tool_calls.*.id", Want::Slot(Slot::Id)),
    ("choices.*.delta.tool_calls.*.index", Want::Slot(Slot::Index)),
    ("choices.*.delta.tool_calls.*.function.name", Want::Slot(Slot::Name)),
    ("choices.*.delta.tool_calls.*.custom.name", Want::Slot(Slot::Name)),
    ("choices.*.message.function_call", Want::Item(List::Tools)),
    ("choices.*.message.function_call.name", Want::Slot(Slot::Name)),
    ("choices.*.delta.function_call", Want::Item(List::Tools)),
    ("choices.*.delta.function_call.name", Want::Slot(Slot::Name)),
    ("error", Want::Keep(Field::HasError)),
    ("error.type", Want::Keep(Field::ErrorType)),
    ("error.code", Want::Keep(Field::ErrorCode)),
    ("error.status", Want::Keep(Field::ErrorStatus)),
    ("code", Want::Keep(Field::ErrorCode)),
    ("incomplete_details.reason", Want::Keep(Field::IncompleteReason)),
    ("output", Want::Keep(Field::HasOutput)),
    ("output.*", Want::Item(List::Output)),
    ("output.*.id", Want::Slot(Slot::Id)),
    ("output.*.type", Want::Slot(Slot::Type)),
    ("output.*.name", Want::Slot(Slot::Name)),
    ("item", Want::Item(List::Announced)),
    ("item.id", Want::Slot(Slot::Id)),
    ("item.type", Want::Slot(Slot::Type)),
    ("item.name", Want::Slot(Slot::Name)),
    ("response.id", Want::Keep(Field::FinalId)),
    ("response.object", Want::Keep(Field::Object)),
    ("response.model", Want::Keep(Field::Model)),
    ("response.status", Want::Keep(Field::Status)),
    ("response.service_tier", Want::Keep(Field::ServiceTier)),
    ("response.incomplete_details.reason", Want::Keep(Field::IncompleteReason)),
    ("response.error", Want::Keep(Field::HasError)),
    ("response.error.code", Want::Keep(Field::ErrorCode)),
    ("response.error.type", Want::Keep(Field::ErrorType)),
    ("response.output", Want::Keep(Field::HasOutput)),
    ("response.output.*", Want::Item(List::Output)),
    ("response.output.*.id", Want::Slot(Slot::Id)),
    ("response.output.*.type", Want::Slot(Slot::Type)),
    ("response.output.*.name", Want::Slot(Slot::Name)),
    ("response.output.*.action.type", Want::Slot(Slot::Action)),
    ("output.*.action.type", Want::Slot(Slot::Action)),
    ("item.action.type", Want::Slot(Slot::Action)),
    ("response.status_details.reason", Want::Keep(Field::IncompleteReason)),
    ("response.status_details.error", Want::Keep(Field::HasError)),
    ("response.status_details.error.type", Want::Keep(Field::ErrorType)),
    ("response.status_details.error.code", Want::Keep(Field::ErrorCode)),
    ("duration", Want::Keep(Field::AudioSeconds)),
    ("session.input_audio_transcription.model", Want::Keep(Field::Transcriber)),
    ("session.audio.input.transcription.model", Want::Keep(Field::Transcriber)),
    ("usage_info.pages_processed", Want::Keep(Field::Pages)),
    ("choices.*.delta.content", Want::Written),
    ("choices.*.delta.reasoning_content", Want::Written),
    ("choices.*.delta.reasoning", Want::Written),
    ("choices.*.delta.tool_calls.*.function.arguments", Want::Written),
    ("choices.*.message.content", Want::Written),
    ("choices.*.message.reasoning_content", Want::Written),
    ("choices.*.text", Want::Written),
    ("delta", Want::Written),
    ("output.*.content.*.text", Want::Written),
    ("output.text", Want::Written),
    ("output.finish_reason", Want::Keep(Field::FinishReason)),
    ("output.choices", Want::Keep(Field::HasChoices)),
    ("output.choices.*", Want::Choice),
    ("output.choices.*.finish_reason", Want::Slot(Slot::Reason)),
    ("output.choices.*.message.content", Want::Written),
    ("output.choices.*.message.tool_calls.*", Want::Item(List::Tools)),
    ("output.choices.*.message.tool_calls.*.id", Want::Slot(Slot::Id)),
    ("output.choices.*.message.tool_calls.*.index", Want::Slot(Slot::Index)),
    ("output.choices.*.message.tool_calls.*.function.name", Want::Slot(Slot::Name)),
    ("request_id", Want::Keep(Field::ResponseId)),
    ("conversation_id", Want::Keep(Field::Conversation)),
];
