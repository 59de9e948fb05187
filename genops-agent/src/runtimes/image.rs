//! An ELF file, read once for every runtime: machine, loaded parts, symbols and code.
//!
//! Any user may have made the file: every number in the file is checked, and a file is never mapped
//! or read whole. Tables are read in pieces, and no piece is kept; a table larger than
//! [`TABLE_LIMIT`] by its own header is not read at all.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use memchr::memmem;
use object::{
    Endianness, elf,
    pod::{Pod, from_bytes, slice_from_bytes},
    read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _, Sym as _},
};

use super::flow::Flow;

/// Most bytes of a function to decode.
const FUNCTION_LIMIT: u64 = 64 << 10;
/// Most bytes of a table: symbols, or their names.
const TABLE_LIMIT: u64 = 64 << 20;
/// Most loaded parts of a file; the kernel runs no file with more headers than fit a page of 64
/// KiB.
const SEGMENT_LIMIT: u64 = (64 << 10) / 56;
/// Most sections of a file.
const SECTION_LIMIT: u64 = 1 << 16;
/// Most occurrences of the requested names.
const PLACE_LIMIT: usize = 4_096;
/// Bytes in memory at once.
const PIECE: usize = 64 << 10;

type Header = elf::FileHeader64<Endianness>;
type Section = elf::SectionHeader64<Endianness>;
type Sym = elf::Sym64<Endianness>;

/// Reason for a file without probe points.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("cannot be opened: {0}")]
    Open(io::Error),
    #[error("is no regular file")]
    NotAFile,
    #[error("not a 64-bit ELF file: {0}")]
    Malformed(&'static str),
    #[error("says it has {count} {what}; at most {limit} are read")]
    TooLarge { what: &'static str, count: u64, limit: u64 },
    #[error("machine is not x86-64, the only one whose RET instructions are decoded")]
    Machine,
    #[error("has no symbol `{symbol}`")]
    NoSymbol { symbol: &'static str },
    #[error("no RET instruction found in `{symbol}`")]
    NoReturn { symbol: &'static str },
    #[error("a function at address {address:#x} lies outside the file")]
    OutsideFile { address: u64 },
}

/// Address, size and file offset of a function.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    pub(crate) address: u64,
    pub(crate) size: u64,
    pub(crate) file_offset: u64,
}

/// Target processor of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    X86_64,
    /// A machine without a decoder here.
    Other,
}

/// A file with tables within the limits.
pub(crate) struct Image {
    file: File,
    machine: Machine,
    segments: Vec<Segment>,
    sections: Sections,
}

/// Requested functions of a file, by name.
pub(crate) struct Functions(Vec<(String, Function)>);

impl Functions {
    /// Returns a requested function, if present in the file.
    pub(crate) fn get(&self, name: &str) -> Option<Function> {
        self.0.iter().find(|(known, _)| known == name).map(|&(_, function)| function)
    }
}

/// A loaded part of the file.
struct Segment {
    address: u64,
    file_offset: u64,
    file_size: u64,
}

impl Image {
    /// Reads the tables of a file.
    pub(crate) fn open(path: &Path) -> Result<Self, ImageError> {
        let file = open(path)?;
        let header: Header = one(&file, 0).ok_or(ImageError::Malformed("it has no header"))?;
        let endian = header.endian().map_err(|_| ImageError::Malformed("its byte order"))?;
        if !header.is_supported() {
            return Err(ImageError::Malformed("its header is of another kind"));
        }
        let machine = match header.e_machine(endian) {
            elf::EM_X86_64 => Machine::X86_64,
            _ => Machine::Other,
        };
        let segments = segments(&file, &header, endian)?;
        let sections = Sections::of(&file, &header, endian)?;
        Ok(Self { file, machine, segments, sections })
    }

    /// Looks up `names` in the dynamic symbols; if the first name is missing, in the symbol table.
    pub(crate) fn functions(&self, names: &[&str]) -> Result<Functions, ImageError> {
        let Self { file, segments, sections, .. } = self;
        let first = names.first().copied().unwrap_or_default();
        let mut found = sections.look_up(file, elf::SHT_DYNSYM, names)?;
        if !found.iter().any(|symbol| symbol.name == first) {
            found = sections.look_up(file, elf::SHT_SYMTAB, names)?;
        }
        let place = |symbol: Symbol| {
            let Symbol { name, address, size } = symbol;
            let file_offset =
                file_offset(segments, address).ok_or(ImageError::OutsideFile { address })?;
            Ok((name, Function { address, size, file_offset }))
        };
        Ok(Functions(found.into_iter().map(place).collect::<Result<_, ImageError>>()?))
    }

    /// Follows the control flow of a function.
    pub(crate) fn flow(&self, function: Function) -> Result<Flow, ImageError> {
        match self.machine {
            Machine::X86_64 => Ok(Flow::of(function.address, function.size, |address, room| {
                self.code(address, room.clamp(16, FUNCTION_LIMIT))
            })),
            Machine::Other => Err(ImageError::Machine),
        }
    }

    /// Converts an address in the code to an offset in the file.
    pub(crate) fn file_offset(&self, address: u64) -> Option<u64> {
        file_offset(&self.segments, address)
    }

    fn code(&self, address: u64, len: u64) -> Option<Vec<u8>> {
        let segment = self.segments.iter().find(|it| it.contains(address))?;
        let within = address - segment.address;
        let len = len.min(segment.file_size - within).min(FUNCTION_LIMIT);
        let mut code = vec![0; usize::try_from(len).ok()?];
        let at = segment.file_offset.checked_add(within)?;
        self.file.read_exact_at(&mut code, at).ok().map(|()| code)
    }
}

/// Opens a regular file without blocking: the path may meanwhile name a pipe.
fn open(path: &Path) -> Result<File, ImageError> {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let file =
        OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(ImageError::Open)?;
    let regular = file.metadata().map_err(ImageError::Open)?.is_file();
    if regular { Ok(file) } else { Err(ImageError::NotAFile) }
}

/// Reads the structure at an offset.
fn one<T: Pod>(file: &File, offset: u64) -> Option<T> {
    let mut bytes = vec![0; size_of::<T>()];
    file.read_exact_at(&mut bytes, offset).ok()?;
    from_bytes(&bytes).ok().map(|(it, _): (&T, _)| *it)
}

/// Passes each structure of a list to `show`, reading a piece at a time.
fn each<T: Pod>(
    file: &File,
    at: u64,
    count: u64,
    mut show: impl FnMut(&T),
) -> Result<(), ImageError> {
    const CUT: ImageError = ImageError::Malformed("a table lies outside the file");
    let size = size_of::<T>();
    let a_piece = (PIECE / size.max(1)).max(1);
    let mut bytes = vec![0; a_piece * size];
    let mut next = 0;
    while next < count {
        let now = usize::try_from(count - next).unwrap_or(a_piece).min(a_piece);
        let piece = bytes.get_mut(..now * size).ok_or(CUT)?;
        let offset = next.checked_mul(size as u64).and_then(|it| it.checked_add(at)).ok_or(CUT)?;
        file.read_exact_at(piece, offset).map_err(|_| CUT)?;
        let (list, _) = slice_from_bytes::<T>(piece, now).map_err(|()| CUT)?;
        list.iter().for_each(&mut show);
        next += now as u64;
    }
    Ok(())
}

fn at_most(what: &'static str, count: u64, limit: u64) -> Result<u64, ImageError> {
    if count <= limit { Ok(count) } else { Err(ImageError::TooLarge { what, count, limit }) }
}

fn segments(file: &File, header: &Header, endian: Endianness) -> Result<Vec<Segment>, ImageError> {
    let count = u64::from(header.e_phnum(endian));
    let count = at_most("program headers", count, SEGMENT_LIMIT)?;
    let mut segments = Vec::new();
    each(file, header.e_phoff(endian), count, |it: &elf::ProgramHeader64<Endianness>| {
        if it.p_type(endian) == elf::PT_LOAD {
            let (file_offset, file_size) = it.file_range(endian);
            segments.push(Segment { address: it.p_vaddr(endian), file_offset, file_size });
        }
    })?;
    Ok(segments)
}

/// The sections needed: lists of symbols, and their names.
struct Sections {
    list: HashMap<u64, Section>,
    endian: Endianness,
}

impl Sections {
    fn of(file: &File, header: &Header, endian: Endianness) -> Result<Self, ImageError> {
        let at = header.e_shoff(endian);
        let mut count = u64::from(header.e_shnum(endian));
        if count == 0 && at != 0 {
            // More than fit the field: the first section has the count (System V ABI, `e_shnum`).
            count = one::<Section>(file, at).map_or(0, |it| it.sh_size(endian));
        }
        let count = at_most("sections", count, SECTION_LIMIT)?;
        let mut list = HashMap::new();
        let mut index = 0;
        each(file, at, count, |it: &Section| {
            let kind = it.sh_type(endian);
            if [elf::SHT_DYNSYM, elf::SHT_SYMTAB, elf::SHT_STRTAB].contains(&kind) {
                list.insert(index, *it);
            }
            index += 1;
        })?;
        Ok(Self { list, endian })
    }

    /// Finds the first definition of each name in the first list of symbols of a kind.
    fn look_up(&self, file: &File, kind: u32, names: &[&str]) -> Result<Vec<Symbol>, ImageError> {
        let Self { list, endian } = self;
        let of_kind = list.iter().filter(|(_, it)| it.sh_type(*endian) == kind);
        let Some((_, table)) = of_kind.min_by_key(|(index, _)| **index) else {
            return Ok(Vec::new());
        };
        let link = u64::from(table.sh_link(*endian));
        let Some(texts) = list.get(&link) else { return Ok(Vec::new()) };
        let places = places(file, texts, *endian, names)?;
        let mut found: Vec<Symbol> = Vec::new();
        if places.is_empty() {
            return Ok(found);
        }
        let bytes = at_most("bytes of symbols", table.sh_size(*endian), TABLE_LIMIT)?;
        let count = bytes / size_of::<Sym>() as u64;
        each(file, table.sh_offset(*endian), count, |it: &Sym| {
            if let Some(name) = places.get(&u64::from(it.st_name(*endian)))
                && it.is_definition(*endian)
                && !found.iter().any(|known| known.name == *name)
            {
                let (address, size) = (it.st_value(*endian), it.st_size(*endian));
                found.push(Symbol { name: (*name).to_owned(), address, size });
            }
        })?;
        Ok(found)
    }
}

/// A function in a symbol table.
struct Symbol {
    name: String,
    address: u64,
    size: u64,
}

/// Finds the offsets of `names` in a section of texts, each with its final zero byte: much cheaper
/// than looking up the name of each of half a million symbols in a program built for debugging.
fn places<'a>(
    file: &File,
    texts: &Section,
    endian: Endianness,
    names: &[&'a str],
) -> Result<HashMap<u64, &'a str>, ImageError> {
    let size = at_most("bytes of names", texts.sh_size(endian), TABLE_LIMIT)?;
    let ended: Vec<Vec<u8>> = names.iter().map(|it| [it.as_bytes(), &[0]].concat()).collect();
    let overlap = ended.iter().map(Vec::len).max().unwrap_or_default();
    let finders: Vec<_> = ended.iter().map(memmem::Finder::new).collect();
    let mut places = HashMap::new();
    let mut piece = vec![0; PIECE + overlap];
    let mut at = 0;
    while at < size {
        let len = usize::try_from(size - at).unwrap_or(usize::MAX).min(piece.len());
        let bytes = piece.get_mut(..len).unwrap_or_default();
        let from = texts.sh_offset(endian).checked_add(at);
        from.and_then(|from| file.read_exact_at(bytes, from).ok())
            .ok_or(ImageError::Malformed("names lie outside the file"))?;
        for (finder, name) in finders.iter().zip(names) {
            for place in finder.find_iter(bytes) {
                if places.len() >= PLACE_LIMIT {
                    let (what, count) = ("places of names", places.len() as u64 + 1);
                    return Err(ImageError::TooLarge { what, count, limit: PLACE_LIMIT as u64 });
                }
                places.insert(at + place as u64, *name);
            }
        }
        at += PIECE as u64;
    }
    Ok(places)
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    /// A file with a list of two symbols (the second is `SSL_write`) and their names, with sizes
    /// given by the test, and holes in unwritten parts.
    struct Made {
        sections: u16,
        first_section_size: u64,
        program_headers: u16,
        symbols: u64,
        names: u64,
    }

    const HONEST: Made =
        Made { sections: 3, first_section_size: 0, program_headers: 1, symbols: 48, names: 32 };

    #[track_caller]
    fn read(made: &Made) -> Result<Vec<(String, u64)>, ImageError> {
        let at = std::env::temp_dir().join(format!(
            "genops-elf-{}-{}",
            std::process::id(),
            made.names ^ made.symbols
        ));
        let file = File::create(&at).expect("a file");
        let word = |it: u64| it.to_le_bytes();
        let mut header = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        header.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        header.extend([word(0x40_0000), word(64), word(0x1000)].concat());
        header.extend([0, 0, 0, 0, 64, 0, 56, 0]);
        header.extend(made.program_headers.to_le_bytes());
        header.extend([64, 0]);
        header.extend(made.sections.to_le_bytes());
        header.extend([0, 0]);
        let segment =
            [word(0x5_0000_0001), word(0), word(0x40_0000), word(0), word(0x4000), word(0x4000)];
        header.extend(segment.concat());
        let section = |kind: u32, offset: u64, size: u64, link: u32| {
            let mut it = [[0; 4], kind.to_le_bytes()].concat();
            it.extend([word(0), word(0), word(offset), word(size)].concat());
            it.extend([link.to_le_bytes(), [0; 4]].concat());
            it.extend([word(8), word(24)].concat());
            it
        };
        let mut symbol = [0; 24].to_vec();
        symbol.extend([8, 0, 0, 0, elf::STT_FUNC, 0, 1, 0]);
        symbol.extend([word(0x40_0800), word(16)].concat());
        let sections = [
            section(0, 0, made.first_section_size, 0),
            section(elf::SHT_SYMTAB, 0x2000, made.symbols, 2),
            section(elf::SHT_STRTAB, 0x3000, made.names, 0),
        ];
        let parts: [(&[u8], u64); 4] = [
            (&header, 0),
            (&sections.concat(), 0x1000),
            (&symbol, 0x2000),
            (b"\0my_pre_SSL_write\0SSL_read\0", 0x3000),
        ];
        for (bytes, offset) in parts {
            file.write_all_at(bytes, offset).expect("written");
        }
        // A hole of any length costs nothing on disk.
        file.set_len(0x3000 + made.names.clamp(0x1000, 8 << 30)).expect("a hole");
        let read = Image::open(&at).and_then(|image| image.functions(&["SSL_write"]));
        std::fs::remove_file(&at).expect("it was there");
        Ok(read?.0.into_iter().map(|(name, it)| (name, it.file_offset)).collect())
    }

    #[test]
    fn a_symbol_is_found_at_the_end_of_anothers_name_too() {
        // `my_pre_SSL_write` ends with the same text; linkers share such tails.
        let found = read(&HONEST).expect("read");
        assert_eq!(found, [("SSL_write".to_owned(), 0x800)]);
        let cut = Made { names: 17, ..HONEST };
        assert_eq!(read(&cut).expect("read"), [], "its zero is not among the names");
        let half = Made { symbols: 47, ..HONEST };
        assert_eq!(read(&half).expect("read"), [], "half an entry is none");
    }

    #[test]
    fn what_a_file_says_of_its_size_is_no_reason_to_read_it() {
        let huge = 3 << 30;
        let refused = [
            Made { names: huge, ..HONEST },
            Made { names: TABLE_LIMIT + 1, ..HONEST },
            Made { names: u64::MAX, ..HONEST },
            Made { symbols: huge, names: 33, ..HONEST },
            Made { sections: 0, first_section_size: huge, names: 34, ..HONEST },
            Made { program_headers: 60_000, names: 35, ..HONEST },
        ];
        for made in refused {
            let read = read(&made);
            assert!(matches!(read, Err(ImageError::TooLarge { .. })), "{read:?}");
        }
    }

    #[test]
    fn names_are_found_across_the_border_of_two_pieces() {
        let at = std::env::temp_dir().join(format!("genops-names-{}", std::process::id()));
        let file = File::create_new(&at).expect("a file");
        let file = File::options().read(true).write(true).open(&at).map_or(file, |it| it);
        let ends = [5, PIECE - 4, PIECE + 60, 2 * PIECE - 9, 3 * PIECE];
        file.set_len(4 * PIECE as u64).expect("a hole");
        for end in ends {
            file.write_all_at(b"SSL_read\0", end as u64).expect("written");
        }
        let zeros = [0; size_of::<Section>()];
        let (zero, _) = from_bytes::<Section>(&zeros).expect("a section");
        let mut texts = *zero;
        texts.sh_size.set(Endianness::Little, 4 * PIECE as u64);
        let mut found: Vec<u64> = places(&file, &texts, Endianness::Little, &["SSL_read"])
            .expect("read")
            .into_keys()
            .collect();
        found.sort_unstable();
        std::fs::remove_file(&at).expect("it was there");
        assert_eq!(found, ends.map(|it| it as u64));
    }

    #[test]
    fn a_pipe_in_place_of_a_file_delays_nobody() {
        let at = std::env::temp_dir().join(format!("genops-pipe-{}", std::process::id()));
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &at, rustix::fs::FileType::Fifo, mode, 0)
            .expect("a pipe");
        let opened = Image::open(&at);
        std::fs::remove_file(&at).expect("it was there");
        assert!(matches!(opened, Err(ImageError::NotAFile)));
        assert!(matches!(Image::open(Path::new("/dev/zero")), Err(ImageError::NotAFile)));
    }
}
