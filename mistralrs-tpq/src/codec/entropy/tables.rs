//! The models side by side, as the loops over a row read them.

use super::model::{Class, Model, COST_UNIT, ESCAPE_BITS};
use super::rans::Push;

/// What can be pushed, by place: for each class in use its escape, the codes from the lowest on, and its escape again. So a code
/// is found by adding it to the place of zero, whatever is out of reach is on the next place on its side.
#[derive(Debug, Clone, PartialEq)]
pub struct Tables {
    pub models: Vec<Model>,
    /// In units of [`COST_UNIT`], with low bits or an escaped value.
    pub costs: Vec<u32>,
    pub symbols: Vec<Symbol>,
    zeros: Vec<(Class, i32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Symbol {
    pub push: Push,
    /// How many low bits go with it.
    pub low_bits: u8,
    pub escapes: bool,
}

impl Tables {
    pub fn new(models: Vec<Model>) -> Self {
        Self {
            models,
            costs: Vec::new(),
            symbols: Vec::new(),
            zeros: Vec::new(),
        }
    }

    pub fn model(&self, class: Class) -> &Model {
        &self.models[class.model as usize]
    }

    /// The place of a class's code 0.
    pub fn zero(&mut self, class: Class) -> i32 {
        if let Some((_, zero)) = self.zeros.iter().find(|(known, _)| *known == class) {
            return *zero;
        }
        let Model { reach, .. } = *self.model(class);
        let zero = self.symbols.len() as i32 + reach + 1;
        self.zeros.push((class, zero));
        let escape = self.model(class).escape();
        for symbol in [escape].into_iter().chain(0..=escape) {
            self.push(class, symbol);
        }
        zero
    }

    fn push(&mut self, class: Class, symbol: usize) {
        let model = self.model(class);
        let escapes = symbol == model.escape();
        let bits = if escapes { ESCAPE_BITS } else { u32::from(class.shift) };
        let cost = model.costs[symbol] + (bits << COST_UNIT);
        let push = Push::new(u32::from(model.starts[symbol]), u32::from(model.frequencies[symbol]));
        self.costs.push(cost);
        self.symbols.push(Symbol {
            push,
            low_bits: class.shift,
            escapes,
        });
    }
}
