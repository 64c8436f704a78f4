// A box that filters the list of messages on the page of troubleshooting. It takes a line as the program
// printed it, or some words.
document.addEventListener("DOMContentLoaded", () => {
  const list = document.querySelector("section#find-a-message");
  if (!list) return;
  const items = [...list.querySelectorAll("li")].map((item) => {
    const message = item.querySelector("code") ?? item;
    const parts = message.textContent.split("…").map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    return { item, text: item.textContent.toLowerCase(), line: new RegExp(parts.join(".*"), "i") };
  });
  const box = Object.assign(document.createElement("input"), {
    type: "search", id: "message", placeholder: "Paste a line, or type some words",
  });
  box.setAttribute("aria-label", "Search the messages");
  list.querySelector("p").after(box);
  box.addEventListener("input", () => {
    const query = box.value.trim(), words = query.toLowerCase().split(/\s+/);
    for (const { item, text, line } of items)
      item.hidden = Boolean(query) && !words.every((word) => text.includes(word)) && !line.test(query);
    for (const section of [...list.querySelectorAll("section")].reverse())
      section.hidden = Boolean(query) && !section.querySelector("li:not([hidden])");
  });
});
