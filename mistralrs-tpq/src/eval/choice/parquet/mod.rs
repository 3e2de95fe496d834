//! Parquet files of texts, numbers, truth values and lists of them: what data sets of questions are, as the `datasets` library writes them with pyarrow.
//!
//! Written after github.com/apache/parquet-format: plain and dictionary-encoded pages of both versions, uncompressed or snappy. Other encodings and
//! compressions are an error that says so. A column that no task could read (a list in a list, a list of groups) reads as absent.

mod page;
mod thrift;

use serde_json::{Map, Value};

use self::page::{hybrid, Physical};
use self::thrift::Thrift;

pub(super) const MAGIC: &[u8] = b"PAR1";

/// A page with more would not be written by anybody, and a header may say anything.
const MOST_VALUES: usize = 1 << 24;
const MOST_BYTES: usize = 1 << 28;

/// What is wrong with the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the parquet file cannot be read: {0}")]
pub(super) struct Broken(&'static str);

/// The first `limit` rows.
pub(super) fn rows(file: &[u8], limit: usize) -> Result<Vec<Value>, Broken> {
    let metadata = metadata(file)?;
    let leaves = Leaf::all(metadata.list(2))?;
    let mut rows = Vec::new();
    for group in metadata.list(4) {
        let count = group.size(3)?;
        if count > MOST_VALUES {
            return Err(Broken("a row group says that it has more than 16 million rows"));
        }
        let first = rows.len();
        rows.resize(first + count, Value::Object(Map::new()));
        let columns = group.list(1);
        if columns.len() != leaves.len() {
            return Err(Broken("a row group has other columns than the schema"));
        }
        for (leaf, column) in leaves.iter().zip(columns) {
            let Some(path) = &leaf.path else { continue };
            let values = leaf.values(file, column, count)?;
            for (row, value) in rows[first..].iter_mut().zip(values) {
                place(row, path, value);
            }
        }
        if rows.len() >= limit {
            break;
        }
    }
    rows.truncate(limit);
    Ok(rows)
}

/// The footer: its length and the magic number end the file.
fn metadata(file: &[u8]) -> Result<Thrift, Broken> {
    const CUT: Broken = Broken("it does not end as a parquet file does");
    let (body, end) = file.split_last_chunk::<8>().ok_or(CUT)?;
    if &end[4..] != MAGIC {
        return Err(CUT);
    }
    let len = u32::from_le_bytes([end[0], end[1], end[2], end[3]]) as usize;
    let start = body.len().checked_sub(len).ok_or(CUT)?;
    Ok(Thrift::read(&body[start..])?.0)
}

/// Puts `value` at `path` of nested objects.
fn place(row: &mut Value, path: &[String], value: Value) {
    let Some((name, rest)) = path.split_first() else {
        *row = value;
        return;
    };
    if let Value::Object(fields) = row {
        let field = fields.entry(name.clone()).or_insert_with(|| Value::Object(Map::new()));
        place(field, rest, value);
    }
}

/// A column: a leaf of the schema.
#[derive(Debug, Clone, PartialEq)]
struct Leaf {
    /// Names down to the value or its list; `None` for a column that is not read.
    path: Option<Vec<String>>,
    physical: Physical,
    /// Definition level of a value that is there.
    defined: u32,
    /// Definition level from which a list has an entry; `None` where there is no list.
    entry: Option<u32>,
    /// Repetition levels.
    repeated: u32,
}

impl Leaf {
    /// The schema is a tree, written depth first; the first element is its root.
    fn all(elements: &[Thrift]) -> Result<Vec<Self>, Broken> {
        let mut leaves = Vec::new();
        // Children left, names, and levels, of each group that is open.
        let mut open: Vec<(usize, Place)> = Vec::new();
        for element in elements {
            while open.last().is_some_and(|(left, _)| *left == 0) {
                open.pop();
            }
            let place = match open.last_mut() {
                None => Place::default(),
                Some((left, parent)) => {
                    *left -= 1;
                    parent.child(element)
                }
            };
            match element.number(5) {
                Some(children) => {
                    let children =
                        usize::try_from(children).map_err(|_| Broken("a group of the schema has a negative size"))?;
                    open.push((children, place));
                }
                None => leaves.push(place.leaf(element)?),
            }
        }
        Ok(leaves)
    }

    /// One value for each of `count` rows.
    fn values(&self, file: &[u8], column: &Thrift, count: usize) -> Result<Vec<Value>, Broken> {
        let column = column.field(3).ok_or(Broken("a column has no metadata"))?;
        // The dictionary, where there is one, comes first.
        let data = column.size(9)?;
        let mut at = column.size(11).unwrap_or(data).min(data);
        let total = column.size(5)?;
        let (mut dictionary, mut rows, mut seen) = (Vec::new(), Vec::new(), 0);
        while seen < total {
            let header = file.get(at..).ok_or(Broken("a page lies beyond the end"))?;
            let (header, len) = Thrift::read(header)?;
            let (size, packed) = (header.size(2)?, header.size(3)?);
            at += len;
            let end = at.checked_add(packed);
            let bytes = end
                .and_then(|end| file.get(at..end))
                .ok_or(Broken("a page is cut off"))?;
            at += packed;
            match header.number(1) {
                Some(2) => {
                    let bytes = unpacked(column.number(4), bytes, size)?;
                    let inner = header.field(7).ok_or(Broken("a dictionary has no header"))?;
                    dictionary = self.physical.plain(&bytes, limited(inner.size(1)?)?)?;
                }
                Some(kind @ (0 | 3)) => {
                    let page = Page::new(kind == 3, &header, column.number(4), bytes, size, self)?;
                    seen += page.count;
                    self.assemble(page, &dictionary, &mut rows)?;
                }
                // An index, which nobody writes.
                _ => {}
            }
        }
        match rows.len() == count {
            true => Ok(rows),
            false => Err(Broken("a column has another number of rows than its row group")),
        }
    }

    fn assemble(&self, page: Page, dictionary: &[Value], rows: &mut Vec<Value>) -> Result<(), Broken> {
        const SHORT: Broken = Broken("a page has fewer values than its levels say");
        let present = page.defined.iter().filter(|level| **level == self.defined).count();
        let values = page.values(self.physical, present, dictionary)?;
        let mut values = values.into_iter();
        for (defined, repeated) in page.defined.iter().zip(&page.repeated) {
            let value = match *defined == self.defined {
                true => values.next().ok_or(SHORT)?,
                false => Value::Null,
            };
            let Some(entry) = self.entry else {
                rows.push(value);
                continue;
            };
            if *repeated == 0 {
                rows.push(Value::Array(Vec::new()));
            }
            match rows.last_mut() {
                Some(Value::Array(list)) if *defined >= entry => list.push(value),
                Some(_) => {}
                None => return Err(Broken("a column starts inside a row")),
            }
        }
        Ok(())
    }
}

/// Where in the schema an element is.
#[derive(Debug, Clone, Default)]
struct Place {
    names: Vec<String>,
    defined: u32,
    entry: Option<u32>,
    repeated: u32,
    /// Groups below the list, its wrapper excepted.
    below: usize,
}

impl Place {
    fn child(&self, element: &Thrift) -> Self {
        let mut place = self.clone();
        let repetition = element.number(3).unwrap_or(0);
        place.defined += u32::from(repetition != 0);
        match (self.entry, repetition) {
            (None, 2) => {
                place.repeated = 1;
                place.entry = Some(place.defined);
                // `list` of a list in three levels has a child; a repeated leaf is its own list.
                if element.number(5).is_none() {
                    place
                        .names
                        .extend(element.field(4).and_then(Thrift::text).map(str::to_owned));
                }
            }
            (None, _) => place
                .names
                .extend(element.field(4).and_then(Thrift::text).map(str::to_owned)),
            (Some(_), _) => {
                place.repeated += u32::from(repetition == 2);
                place.below += 1;
            }
        }
        place
    }

    fn leaf(self, element: &Thrift) -> Result<Leaf, Broken> {
        let number = element.number(1).ok_or(Broken("a column has no type"))?;
        let length = element
            .number(2)
            .and_then(|length| usize::try_from(length).ok())
            .unwrap_or(0);
        let readable = self.repeated <= 1 && self.below <= 1 && !self.names.is_empty();
        Ok(Leaf {
            path: readable.then_some(self.names),
            physical: Physical::new(number, length)?,
            defined: self.defined,
            entry: self.entry,
            repeated: self.repeated,
        })
    }
}

/// A page with its levels read.
struct Page {
    count: usize,
    encoding: i64,
    defined: Vec<u32>,
    repeated: Vec<u32>,
    /// After the levels.
    body: Vec<u8>,
}

impl Page {
    fn new(
        second: bool,
        header: &Thrift,
        codec: Option<i64>,
        bytes: &[u8],
        size: usize,
        leaf: &Leaf,
    ) -> Result<Self, Broken> {
        let inner = header
            .field(if second { 8 } else { 5 })
            .ok_or(Broken("a page has no header"))?;
        let count = limited(inner.size(1)?)?;
        if count == 0 {
            return Err(Broken("a page has no values"));
        }
        let encoding = inner.number(if second { 4 } else { 2 }).unwrap_or(-1);
        let (repeated, defined, body) = match second {
            // Levels are not compressed, and the header has their lengths.
            true => {
                let (d, r) = (inner.size(5)?, inner.size(6)?);
                const CUT: Broken = Broken("levels are longer than their page");
                let (repeated, rest) = bytes.split_at_checked(r).ok_or(CUT)?;
                let (defined, rest) = rest.split_at_checked(d).ok_or(CUT)?;
                let size = size.checked_sub(r).and_then(|size| size.checked_sub(d)).ok_or(CUT)?;
                let codec = if inner.field(7) == Some(&Thrift::Bool(false)) {
                    Some(0)
                } else {
                    codec
                };
                (repeated.to_vec(), defined.to_vec(), unpacked(codec, rest, size)?)
            }
            false => {
                let mut body = unpacked(codec, bytes, size)?;
                let repeated = counted(&mut body, leaf.repeated > 0)?;
                let defined = counted(&mut body, leaf.defined > 0)?;
                (repeated, defined, body)
            }
        };
        let levels = |bytes: &[u8], most: u32| match most {
            0 => Ok(vec![0; count]),
            most => hybrid(bytes, u32::BITS - most.leading_zeros(), count),
        };
        Ok(Self {
            count,
            encoding,
            defined: levels(&defined, leaf.defined)?,
            repeated: levels(&repeated, leaf.repeated)?,
            body,
        })
    }

    fn values(&self, physical: Physical, count: usize, dictionary: &[Value]) -> Result<Vec<Value>, Broken> {
        match self.encoding {
            0 => physical.plain(&self.body, count),
            // Indices, with their width in the first byte.
            2 | 8 if count == 0 => Ok(Vec::new()),
            2 | 8 => {
                let (width, indices) = self.body.split_first().ok_or(Broken("a page has no indices"))?;
                let value = |index: u32| dictionary.get(index as usize).cloned();
                let values = hybrid(indices, u32::from(*width), count)?.into_iter().map(value);
                values.collect::<Option<_>>().ok_or(Broken("an index is beyond its dictionary"))
            }
            // Of truth values, in pages of the second version.
            3 if physical == Physical::Boolean => {
                let mut body = self.body.clone();
                let bits = counted(&mut body, true)?;
                Ok(hybrid(&bits, 1, count)?.into_iter().map(|bit| Value::from(bit == 1)).collect())
            }
            _ => Err(Broken(
                "a column has an encoding other than plain or dictionary; take the JSON lines, or write it anew with pyarrow's defaults",
            )),
        }
    }
}

/// Takes bytes with their length before them off the start of `body`.
fn counted(body: &mut Vec<u8>, there: bool) -> Result<Vec<u8>, Broken> {
    const CUT: Broken = Broken("levels are longer than their page");
    if !there {
        return Ok(Vec::new());
    }
    let (len, rest) = body.split_first_chunk::<4>().ok_or(CUT)?;
    let (taken, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or(CUT)?;
    let taken = taken.to_vec();
    *body = rest.to_vec();
    Ok(taken)
}

fn unpacked(codec: Option<i64>, bytes: &[u8], size: usize) -> Result<Vec<u8>, Broken> {
    if size > MOST_BYTES {
        return Err(Broken("a page says that it has more than 256 MiB"));
    }
    let unpacked = match codec {
        Some(0) => bytes.to_vec(),
        // An empty body is not compressed at all.
        Some(1) if bytes.is_empty() => Vec::new(),
        Some(1) => {
            const BAD: Broken = Broken("a page does not decompress");
            if snap::raw::decompress_len(bytes).map_err(|_| BAD)? != size {
                return Err(BAD);
            }
            snap::raw::Decoder::new().decompress_vec(bytes).map_err(|_| BAD)?
        }
        _ => {
            return Err(Broken(
                "it is compressed otherwise than with snappy; take the JSON lines, or write it anew with pyarrow's defaults",
            ))
        }
    };
    match unpacked.len() == size {
        true => Ok(unpacked),
        false => Err(Broken("a page has another size than its header says")),
    }
}

fn limited(count: usize) -> Result<usize, Broken> {
    match count <= MOST_VALUES {
        true => Ok(count),
        false => Err(Broken("a page says that it has more than 16 million values")),
    }
}
