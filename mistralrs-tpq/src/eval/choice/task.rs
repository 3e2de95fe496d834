//! The tasks, and how a published row becomes a question.

use serde_json::Value;

/// A benchmark whose rows Hugging Face publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Task {
    /// `allenai/ai2_arc`, ARC-Easy.
    ArcEasy,
    /// `allenai/ai2_arc`, ARC-Challenge.
    ArcChallenge,
    /// `allenai/winogrande`, in the harness winogrande_xl's validation split.
    WinoGrande,
    /// `Rowan/hellaswag`.
    HellaSwag,
    /// `google/boolq`, or `boolq` of `aps/super_glue`.
    BoolQ,
}

/// One question: the log-likelihood of each continuation after its context decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// (context, continuation) of each choice.
    pub choices: Vec<(String, String)>,
    /// Characters of each answer, for `acc_norm`.
    pub lengths: Vec<usize>,
    /// Index of the right one.
    pub gold: usize,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TaskError {
    #[error("field `{field}` is {got}, expected {expected}")]
    Field {
        field: &'static str,
        expected: &'static str,
        got: String,
    },
    #[error("the right answer `{answer}` is none of the {choices} choices")]
    Gold { answer: String, choices: usize },
}

impl Task {
    pub const ALL: [Self; 5] = [
        Self::ArcEasy,
        Self::ArcChallenge,
        Self::WinoGrande,
        Self::HellaSwag,
        Self::BoolQ,
    ];

    /// As the harness calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ArcEasy => "arc_easy",
            Self::ArcChallenge => "arc_challenge",
            Self::WinoGrande => "winogrande",
            Self::HellaSwag => "hellaswag",
            Self::BoolQ => "boolq",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|task| task.name() == name)
    }

    /// Whether the harness reports `acc_norm`: not where both answers are alike but for a word.
    pub const fn has_acc_norm(self) -> bool {
        matches!(self, Self::ArcEasy | Self::ArcChallenge | Self::HellaSwag)
    }

    /// # Errors
    /// A field that the task's published rows have and this one has not.
    pub fn item(self, row: &Value) -> Result<Item, TaskError> {
        match self {
            Self::ArcEasy | Self::ArcChallenge => arc(row),
            Self::WinoGrande => winogrande(row),
            Self::HellaSwag => hellaswag(row),
            Self::BoolQ => boolq(row),
        }
    }
}

fn arc(row: &Value) -> Result<Item, TaskError> {
    let context = format!("Question: {}\nAnswer:", text(row, "question")?);
    let choices = &row["choices"];
    let (answers, labels) = (texts(choices, "text")?, texts(choices, "label")?);
    let key = text(row, "answerKey")?;
    let gold = labels.iter().position(|label| *label == key);
    item(&context, &answers, gold, key)
}

fn winogrande(row: &Value) -> Result<Item, TaskError> {
    let sentence = text(row, "sentence")?;
    let (before, after) = sentence
        .split_once('_')
        .ok_or_else(|| wrong("sentence", "a sentence with a gap, `_`", &row["sentence"]))?;
    let continuation = format!(" {}", after.trim());
    let options = [text(row, "option1")?, text(row, "option2")?];
    let contexts = options.map(|option| format!("{before}{option}"));
    let answer = text(row, "answer")?;
    let gold = ["1", "2"].iter().position(|number| *number == answer);
    Ok(Item {
        lengths: contexts.iter().map(|context| context.chars().count()).collect(),
        choices: contexts
            .into_iter()
            .map(|context| (context, continuation.clone()))
            .collect(),
        gold: gold.ok_or_else(|| not_a_choice(answer, 2))?,
    })
}

fn hellaswag(row: &Value) -> Result<Item, TaskError> {
    let (activity, a, b) = (text(row, "activity_label")?, text(row, "ctx_a")?, text(row, "ctx_b")?);
    let context = cleaned(format!("{activity}: {a} {}", capitalized(b)));
    let endings: Vec<String> = texts(row, "endings")?.into_iter().map(cleaned).collect();
    let endings: Vec<&str> = endings.iter().map(String::as_str).collect();
    // A number in the JSONL files, a string in the parquet files.
    let label = match &row["label"] {
        Value::Number(number) => number.to_string(),
        _ => text(row, "label")?.to_owned(),
    };
    item(&context, &endings, label.parse().ok(), &label)
}

fn boolq(row: &Value) -> Result<Item, TaskError> {
    let (passage, question) = (text(row, "passage")?, text(row, "question")?);
    let context = format!("{passage}\nQuestion: {question}?\nAnswer:");
    // `answer` in google/boolq, `label` in SuperGLUE.
    let gold = match (&row["answer"], &row["label"]) {
        (Value::Bool(answer), _) => usize::from(*answer),
        (Value::Null, label) => match label.as_u64() {
            Some(label @ 0..=1) => label as usize,
            _ => return Err(wrong("label", "0 or 1", label)),
        },
        (other, _) => return Err(wrong("answer", "true or false", other)),
    };
    item(&context, &["no", "yes"], Some(gold), "")
}

/// One context, answers after a space.
fn item(context: &str, answers: &[&str], gold: Option<usize>, key: &str) -> Result<Item, TaskError> {
    let gold = gold.filter(|gold| *gold < answers.len());
    Ok(Item {
        choices: answers
            .iter()
            .map(|answer| (context.to_owned(), format!(" {answer}")))
            .collect(),
        lengths: answers.iter().map(|answer| answer.chars().count()).collect(),
        gold: gold.ok_or_else(|| not_a_choice(key, answers.len()))?,
    })
}

/// The harness's `preprocess` for HellaSwag: what is in brackets is left over from WikiHow.
fn cleaned(text: impl AsRef<str>) -> String {
    let text = text.as_ref().trim().replace(" [title]", ". ");
    let mut kept = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        let inside = &rest[open..];
        // As the regular expression `\[.*?\]`, whose dot is no line end.
        match inside.find([']', '\n']) {
            Some(close) if inside[close..].starts_with(']') => {
                kept.push_str(&rest[..open]);
                rest = &inside[close + 1..];
            }
            _ => {
                kept.push_str(&rest[..=open]);
                rest = &inside[1..];
            }
        }
    }
    kept.push_str(rest);
    kept.replace("  ", " ")
}

/// Python's `str.capitalize`: the first character large and all others small.
fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(characters.as_str().to_lowercase().chars()).collect()
}

fn text<'a>(row: &'a Value, field: &'static str) -> Result<&'a str, TaskError> {
    row[field].as_str().ok_or_else(|| wrong(field, "a string", &row[field]))
}

fn texts<'a>(row: &'a Value, field: &'static str) -> Result<Vec<&'a str>, TaskError> {
    let list = row[field].as_array().filter(|list| !list.is_empty());
    let texts: Option<Vec<&str>> = list.and_then(|list| list.iter().map(Value::as_str).collect());
    texts.ok_or_else(|| wrong(field, "a list of strings", &row[field]))
}

fn wrong(field: &'static str, expected: &'static str, got: &Value) -> TaskError {
    TaskError::Field {
        field,
        expected,
        got: got.to_string().chars().take(80).collect(),
    }
}

fn not_a_choice(answer: &str, choices: usize) -> TaskError {
    TaskError::Gold {
        answer: answer.chars().take(80).collect(),
        choices,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pairs(item: &Item) -> Vec<(&str, &str)> {
        item.choices.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect()
    }

    #[test]
    fn arc_asks_and_offers_the_answers() {
        let row = json!({"id": "x", "question": "Which is a metal?", "answerKey": "B",
            "choices": {"text": ["wood", "iron"], "label": ["A", "B"]}});
        let item = Task::ArcEasy.item(&row).unwrap();
        let context = "Question: Which is a metal?\nAnswer:";
        assert_eq!(pairs(&item), [(context, " wood"), (context, " iron")]);
        assert_eq!((item.gold, item.lengths), (1, vec![4, 4]));
    }

    #[test]
    fn winogrande_puts_the_options_into_the_context_and_scores_what_follows() {
        let row = json!({"sentence": "The pot did not fit the shelf because _ was too wide.",
            "option1": "the pot", "option2": "the shelf", "answer": "1"});
        let item = Task::WinoGrande.item(&row).unwrap();
        let expected = [
            ("The pot did not fit the shelf because the pot", " was too wide."),
            ("The pot did not fit the shelf because the shelf", " was too wide."),
        ];
        assert_eq!((pairs(&item), item.gold), (expected.to_vec(), 0));
    }

    #[test]
    fn hellaswag_is_cleaned_of_brackets_and_reads_both_kinds_of_label() {
        let row = |label: Value| {
            json!({"activity_label": "Baking", "ctx_a": "[header] How to bake [title] Mix.", "ctx_b": "then YOU",
                "endings": ["wait. [step] Rest  well.", "run"], "label": label})
        };
        for label in [json!(1), json!("1")] {
            let item = Task::HellaSwag.item(&row(label)).unwrap();
            // Removing a bracket leaves two spaces, which become one.
            let context = "Baking: How to bake. Mix. Then you";
            assert_eq!(pairs(&item), [(context, " wait. Rest well."), (context, " run")]);
            assert_eq!(item.gold, 1);
        }
        assert_eq!(cleaned(" a [b\nc] d "), "a [b\nc] d");
    }

    #[test]
    fn boolq_reads_the_two_published_forms() {
        let context = "Ice floats.\nQuestion: does ice float?\nAnswer:";
        for answer in [("answer", json!(true)), ("label", json!(1))] {
            let mut row = json!({"passage": "Ice floats.", "question": "does ice float"});
            row[answer.0] = answer.1;
            let item = Task::BoolQ.item(&row).unwrap();
            assert_eq!(pairs(&item), [(context, " no"), (context, " yes")]);
            assert_eq!(item.gold, 1);
        }
    }

    #[test]
    fn a_row_of_another_data_set_is_refused_with_the_field() {
        let error = |task: Task, row: Value| task.item(&row).unwrap_err().to_string();
        assert_eq!(
            error(Task::ArcEasy, json!({"sentence": "x"})),
            "field `question` is null, expected a string"
        );
        let row = json!({"question": "q", "answerKey": "E", "choices": {"text": ["a"], "label": ["A"]}});
        assert_eq!(
            error(Task::ArcChallenge, row),
            "the right answer `E` is none of the 1 choices"
        );
        let row = json!({"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"});
        assert!(error(Task::WinoGrande, row).contains("a gap"));
        // HellaSwag's test split has no labels.
        let row = json!({"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["d"], "label": ""});
        assert!(error(Task::HellaSwag, row).contains("none of the 1 choices"));
    }
}
