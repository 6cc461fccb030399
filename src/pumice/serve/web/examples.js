// Pictures that come with the page, each with a question that it answers.

export const EXAMPLES = [
  { file: "examples/receipt.png", alt: "A shop's receipt", question: "How much was paid in all?" },
  { file: "examples/chart.png", alt: "A bar chart of countries", question: "What is Distance for Cambodia?" },
  { file: "examples/cherry.png", alt: "A drawing of cherries", question: "What colour is the cherry?" },
];
