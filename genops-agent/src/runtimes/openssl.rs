//! OpenSSL 1.1 and 3, as a shared library or linked into an executable with symbols (Node.js).
//!
//! Probes sit at the entry of each function and at each of its RET instructions, or at cheaper
//! places. Return probes are not used: from Linux 6.11 on, a return probe makes a system call, and
//! seccomp filters of existing containers kill the caller.

use super::{
    ProbePoint, Role, Runtime,
    flow::Place,
    image::{Image, ImageError},
};

/// `libssl.so.1.1`, `libssl.so.3`, and the copies shipped by Python wheels and others, such as
/// `libssl-1b2e3c4d.so.3`. (`libssl3.so` is NSS.)
pub(super) const SHARED: Runtime =
    Runtime { name: "openssl", may_be_in: is_libssl, detect: probe_points };

fn is_libssl(role: Role, file_name: &str) -> bool {
    let is_named_so = || {
        let rest = file_name.strip_prefix("libssl");
        rest.is_some_and(|rest| rest.starts_with(['.', '-']) && rest.contains(".so"))
    };
    role == Role::Library && is_named_so()
}

/// Any executable may contain OpenSSL; the symbols tell.
pub(super) const IN_EXECUTABLE: Runtime = Runtime {
    name: "openssl-static",
    may_be_in: |role, _| role == Role::Executable,
    detect: probe_points_if_any,
};

/// Most executables hold no TLS library: not an error.
fn probe_points_if_any(image: &Image) -> Result<Vec<ProbePoint>, ImageError> {
    match probe_points(image) {
        Err(ImageError::NoSymbol { .. } | ImageError::Machine | ImageError::Malformed(_)) => {
            Ok(Vec::new())
        }
        points => points,
    }
}

/// A function, the program at its entry, and the program at its RET instructions.
struct Function {
    symbol: &'static str,
    entry: &'static str,
    ret: Option<&'static str>,
    /// Whether a file without the function is no OpenSSL readable by the agent. The other functions
    /// came later (`_ex` with 1.1.1).
    required: bool,
}

const FUNCTIONS: &[Function] = &[
    Function {
        symbol: "SSL_write",
        entry: "ssl_write",
        ret: Some("ssl_write_ret"),
        required: true,
    },
    Function { symbol: "SSL_read", entry: "ssl_read", ret: Some("ssl_read_ret"), required: true },
    Function {
        symbol: "SSL_write_ex",
        entry: "ssl_write_ex",
        ret: Some("ssl_write_ret"),
        required: false,
    },
    Function {
        symbol: "SSL_read_ex",
        entry: "ssl_read_ex",
        ret: Some("ssl_read_ret"),
        required: false,
    },
    Function { symbol: "SSL_ctrl", entry: "ssl_ctrl", ret: None, required: false },
    Function { symbol: "SSL_do_handshake", entry: "ssl_handshake", ret: None, required: false },
    Function { symbol: "SSL_connect", entry: "ssl_handshake", ret: None, required: false },
    Function { symbol: "SSL_free", entry: "ssl_free", ret: None, required: false },
];

fn probe_points(image: &Image) -> Result<Vec<ProbePoint>, ImageError> {
    let names: Vec<&str> = FUNCTIONS.iter().map(|it| it.symbol).collect();
    let functions = image.functions(&names)?;
    let mut points = Vec::new();
    for function in FUNCTIONS {
        let Some(symbol) = functions.get(function.symbol) else {
            if function.required {
                return Err(ImageError::NoSymbol { symbol: function.symbol });
            }
            continue;
        };
        let flow = image.flow(symbol)?;
        let offset = |place: Place| Some((image.file_offset(place.address)?, place.frame));
        points.push(ProbePoint {
            program: function.entry,
            file_offset: symbol.file_offset,
            cheaper: flow.cheap_entry().and_then(offset),
        });
        let Some(program) = function.ret else { continue };
        let returns = flow.returns();
        if returns.is_empty() {
            return Err(ImageError::NoReturn { symbol: function.symbol });
        }
        points.extend(returns.into_iter().filter_map(|address| {
            let cheaper = flow.cheap_return(address).and_then(offset);
            Some(ProbePoint { program, file_offset: image.file_offset(address)?, cheaper })
        }));
    }
    Ok(points)
}

#[cfg(test)]
#[expect(clippy::print_stdout, reason = "a test says why it was skipped")]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn names_of_libssl_in_the_wild() {
        for name in ["libssl.so.3", "libssl.so.1.1", "libssl-1b2e3c4d.so.3", "libssl.so"] {
            assert!(is_libssl(Role::Library, name), "{name}");
        }
        for name in ["libcrypto.so.3", "libnss_ssl.so", "libssl3.so", "libssl-notes.txt"] {
            assert!(!is_libssl(Role::Library, name), "{name}");
        }
        assert!(!is_libssl(Role::Executable, "libssl.so.3"));
    }

    #[test]
    fn the_systems_libssl_has_an_entry_and_a_ret_for_each_function() {
        let Some(libssl) = ["/usr/lib/x86_64-linux-gnu/libssl.so.3", "/usr/lib64/libssl.so.3"]
            .iter()
            .map(Path::new)
            .find(|it| it.exists())
        else {
            println!("skipped: no libssl.so.3 of the system");
            return;
        };
        let image = Image::open(libssl).expect("a library");
        let points = probe_points(&image).expect("an OpenSSL");
        for function in FUNCTIONS {
            assert!(points.iter().any(|it| it.program == function.entry), "{}", function.entry);
            if let Some(program) = function.ret {
                assert!(points.iter().filter(|it| it.program == program).count() >= 2);
            }
        }
    }
}
