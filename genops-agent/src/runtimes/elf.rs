//! Functions of an ELF file, and their code.
//!
//! Reads files that any user may have made: every number in them is checked, and a file is never
//! mapped or read whole.

use std::{fs::File, path::Path};

use object::{
    Endianness, Object as _, ObjectSection as _, ObjectSegment as _, ObjectSymbol,
    read::{
        ReadCache, ReadRef,
        elf::{ElfFile64, Sym as _, VersionTable},
    },
};

use super::flow::Flow;

/// Most bytes of one function that are decoded.
const FUNCTION_LIMIT: u64 = 64 << 10;

/// Why a file gives no probe points.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ElfError {
    #[error("cannot be opened: {0}")]
    Open(#[from] std::io::Error),
    #[error("not a 64-bit ELF file: {0}")]
    Malformed(#[from] object::Error),
    #[error("machine is not x86-64, the only one whose RET instructions are decoded")]
    Machine,
    #[error("has no symbol `{symbol}`")]
    NoSymbol { symbol: &'static str },
    #[error("no RET instruction found in `{symbol}`")]
    NoReturn { symbol: &'static str },
    #[error("a function at address {address:#x} lies outside the file")]
    OutsideFile { address: u64 },
}

/// A function's place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    pub(crate) address: u64,
    pub(crate) size: u64,
    pub(crate) file_offset: u64,
}

/// The functions asked for, and the code to look into.
pub(crate) struct Elf {
    cache: ReadCache<File>,
    segments: Vec<Segment>,
    functions: Vec<(String, Function)>,
}

/// A loaded part of the file.
struct Segment {
    address: u64,
    file_offset: u64,
    file_size: u64,
}

impl Elf {
    /// Looks up `names` in the dynamic symbols; where the first of them is not there, in the symbol table.
    pub(crate) fn open(path: &Path, names: &[&str]) -> Result<Self, ElfError> {
        let cache = ReadCache::new(File::open(path)?);
        let (segments, functions) = {
            let elf: ElfFile64<'_, Endianness, _> = ElfFile64::parse(&cache)?;
            if elf.architecture() != object::Architecture::X86_64 {
                return Err(ElfError::Machine);
            }
            let segments: Vec<Segment> = elf
                .segments()
                .map(|it| {
                    let (file_offset, file_size) = it.file_range();
                    Segment { address: it.address(), file_offset, file_size }
                })
                .collect();
            let mut found = exported(&elf, names)?;
            let first = names.first().copied().unwrap_or_default();
            if !found.iter().any(|it| it.name == first) && mentions(&elf, first) {
                found = listed(elf.symbols(), names);
            }
            let place = |it: Symbol| {
                let Symbol { name, address, size } = it;
                let file_offset =
                    file_offset(&segments, address).ok_or(ElfError::OutsideFile { address })?;
                Ok((name, Function { address, size, file_offset }))
            };
            let functions = found.into_iter().map(place).collect::<Result<_, ElfError>>()?;
            (segments, functions)
        };
        Ok(Self { cache, segments, functions })
    }

    /// A function that was asked for, if the file has it.
    pub(crate) fn function(&self, name: &str) -> Option<Function> {
        self.functions.iter().find(|(known, _)| known == name).map(|&(_, function)| function)
    }

    /// How control flows through a function.
    pub(crate) fn flow(&self, function: Function) -> Flow {
        Flow::of(function.address, function.size, |address, room| {
            self.code(address, room.clamp(16, FUNCTION_LIMIT))
        })
    }

    /// The offset in the file of an address in the code.
    pub(crate) fn file_offset(&self, address: u64) -> Option<u64> {
        file_offset(&self.segments, address)
    }

    fn code(&self, address: u64, len: u64) -> Option<&[u8]> {
        let segment = self.segments.iter().find(|it| it.contains(address))?;
        let within = address - segment.address;
        let len = len.min(segment.file_size - within);
        (&self.cache).read_bytes_at(segment.file_offset + within, len).ok()
    }
}

/// A function as a symbol table has it.
struct Symbol {
    name: String,
    address: u64,
    size: u64,
}

/// Functions that a file exports, by its hash table: Node.js exports 90,000.
fn exported<'data, R: ReadRef<'data>>(
    elf: &ElfFile64<'data, Endianness, R>,
    names: &[&str],
) -> Result<Vec<Symbol>, ElfError> {
    let (endian, data) = (elf.endian(), elf.data());
    let sections = elf.elf_section_table();
    let Some((table, _)) = sections.gnu_hash(endian, data)? else {
        return Ok(listed(elf.dynamic_symbols(), names));
    };
    let symbols = sections.symbols(endian, data, object::elf::SHT_DYNSYM)?;
    let versions = VersionTable::default();
    let find = |name: &&str| {
        let hash = object::elf::gnu_hash(name.as_bytes());
        let (_, symbol) = table.find(endian, name.as_bytes(), hash, None, &symbols, &versions)?;
        let (address, size) = (symbol.st_value(endian), symbol.st_size(endian));
        Some(Symbol { name: (*name).to_owned(), address, size })
    };
    Ok(names.iter().filter_map(find).collect())
}

/// Whether the names of the symbol table hold this one: cheaper than to go through half a million symbols,
/// as programs built for debugging have.
fn mentions<'data, R: ReadRef<'data>>(elf: &ElfFile64<'data, Endianness, R>, name: &str) -> bool {
    let names = elf.section_by_name(".strtab").and_then(|it| it.data().ok());
    names.is_some_and(|it| memchr::memmem::find(it, name.as_bytes()).is_some())
}

/// The first function of each name that a list of symbols defines.
fn listed<'data>(
    symbols: impl Iterator<Item = impl ObjectSymbol<'data>>,
    names: &[&str],
) -> Vec<Symbol> {
    let mut found: Vec<Symbol> = Vec::new();
    for symbol in symbols {
        let Ok(name) = symbol.name() else { continue };
        if symbol.is_definition()
            && names.contains(&name)
            && !found.iter().any(|known| known.name == name)
        {
            let (address, size) = (symbol.address(), symbol.size());
            found.push(Symbol { name: name.to_owned(), address, size });
        }
    }
    found
}

impl Segment {
    fn contains(&self, address: u64) -> bool {
        address.checked_sub(self.address).is_some_and(|within| within < self.file_size)
    }
}

fn file_offset(segments: &[Segment], address: u64) -> Option<u64> {
    let segment = segments.iter().find(|it| it.contains(address))?;
    segment.file_offset.checked_add(address - segment.address)
}
