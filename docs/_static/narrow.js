// What site.css needs on narrow screens: each cell of a table has the title of its column, and options in code
// do not break.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("article table.docutils")) {
    const titles = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent.trim());
    for (const row of table.querySelectorAll("tbody tr"))
      [...row.cells].forEach((cell, column) => {
        if (titles[column] && cell.textContent.trim()) cell.dataset.title = titles[column];
      });
  }
  for (const code of document.querySelectorAll("article .highlight pre, article code")) {
    const texts = [], walker = document.createTreeWalker(code, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) texts.push(walker.currentNode);
    for (const text of texts) {
      const words = text.data.split(/(?<![\w-])(-[\w-]{1,30})/);
      if (words.length > 1) text.replaceWith(...words.map((word, odd) => {
        if (!(odd % 2)) return word;
        const option = document.createElement("span");
        option.className = "option";
        option.textContent = word;
        return option;
      }));
    }
  }
});
