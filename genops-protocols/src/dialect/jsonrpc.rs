//! Model Context Protocol over HTTP (streamable, old SSE, stateless) and Agent2Agent: JSON-RPC,
//! recognised by the body, told apart by the methods. Never a model call.

use super::{Bodies, Dialect, Endpoint, Paths, Target};
use crate::call::{Call, Kind, McpCall};
use crate::facts::{Facts, Field, List};
use crate::json::schema::Want;

#[derive(Debug)]
pub(crate) struct JsonRpc;

/// Beginnings or full names of MCP methods.
const MCP_METHODS: &[&str] = &[
    "completion/complete",
    "elicitation/",
    "initialize",
    "logging/setLevel",
    "notifications/",
    "ping",
    "prompts/",
    "resources/",
    "roots/",
    "sampling/",
    "server/",
    "tools/",
];

/// Beginnings of A2A methods: JSON-RPC binding of versions 0.x and 1.0.
const A2A_METHODS: &[&str] = &[
    "message/",
    "tasks/",
    "agent/",
    "SendMessage",
    "SendStreamingMessage",
    "GetTask",
    "ListTasks",
    "CancelTask",
    "SubscribeToTask",
    "GetExtendedAgentCard",
];

impl JsonRpc {
    pub(crate) fn named(kind: Kind) -> Endpoint {
        let api = if kind == Kind::A2a { "a2a" } else { "mcp" };
        Endpoint { kind, operation: None, ..Endpoint::new(&JsonRpc, api, "") }
    }
}

impl Dialect for JsonRpc {
    fn endpoint(&self, _target: &Target<'_>) -> Option<Endpoint> {
        None // many paths, and other things may be there too: the body decides
    }

    fn request_paths(&self) -> Paths {
        &[REQUEST]
    }

    fn response_paths(&self) -> Paths {
        &[RESPONSE]
    }

    fn confirms(&self, _endpoint: &Endpoint, request: &Facts) -> bool {
        request.has(Field::Jsonrpc)
    }

    fn guess(&self, Bodies { request, response }: &Bodies<'_>) -> Option<Endpoint> {
        if request.has(Field::Jsonrpc) {
            let Some(method) = request.text(Field::RpcMethod) else {
                // An answer to the server. Only MCP servers send requests.
                return Some(Self::named(Kind::Mcp));
            };
            let among = |list: &[&str]| list.iter().any(|name| method.starts_with(name));
            return match () {
                () if among(MCP_METHODS) => Some(Self::named(Kind::Mcp)),
                () if among(A2A_METHODS) => Some(Self::named(Kind::A2a)),
                () => None,
            };
        }
        let asked = response
            .list(List::Methods)
            .any(|method| MCP_METHODS.iter().any(|name| method.starts_with(name)));
        (response.has(Field::Jsonrpc) && asked).then(|| Self::named(Kind::Mcp))
    }

    fn read(&self, endpoint: &Endpoint, bodies: &Bodies<'_>, call: &mut Call) {
        let Bodies { request, response } = *bodies;
        let mcp = call.mcp.get_or_insert_default();
        let method = request.text(Field::RpcMethod).map(str::to_owned).or(mcp.method.take());
        let name = request.text(Field::RpcName).map(str::to_owned);
        let version = request
            .text(Field::ProtocolVersion)
            .or_else(|| response.text(Field::ProtocolVersion))
            .map(str::to_owned);
        *mcp = McpCall {
            request_id: request.written(Field::RpcId),
            tool: name.clone().filter(|_| method.as_deref() == Some("tools/call")),
            prompt: name.filter(|_| method.as_deref() == Some("prompts/get")),
            resource_uri: request.text(Field::RpcUri).map(str::to_owned),
            rpc_error_code: response.integer(Field::ErrorCode),
            tool_error: response.flag(Field::ToolError) == Some(true),
            client_response: request.has(Field::Jsonrpc) && method.is_none(),
            server_messages: response.list(List::Methods).take(64).map(str::to_owned).collect(),
            session_id: mcp.session_id.take(),
            protocol_version: version.or(mcp.protocol_version.take()),
            method,
        };
        if endpoint.kind == Kind::Mcp && mcp.tool.is_some() {
            call.operation = Some("execute_tool".to_owned());
        }
        call.error_type = match mcp.rpc_error_code {
            Some(code) => Some(code.to_string()),
            None if mcp.tool_error => Some("tool_error".to_owned()),
            None => None,
        };
    }
}

const REQUEST: &[(&str, Want)] = &[
    ("jsonrpc", Want::Keep(Field::Jsonrpc)),
    ("method", Want::Keep(Field::RpcMethod)),
    ("id", Want::Keep(Field::RpcId)),
    ("params.name", Want::Keep(Field::RpcName)),
    ("params.uri", Want::Keep(Field::RpcUri)),
    ("params.protocolVersion", Want::Keep(Field::ProtocolVersion)),
];

const RESPONSE: &[(&str, Want)] = &[
    ("jsonrpc", Want::Keep(Field::Jsonrpc)),
    ("method", Want::Append(List::Methods)),
    ("result", Want::Keep(Field::HasResult)),
    ("result.isError", Want::Keep(Field::ToolError)),
    ("result.protocolVersion", Want::Keep(Field::ProtocolVersion)),
    ("error.code", Want::Keep(Field::ErrorCode)),
];
