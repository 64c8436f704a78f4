// A box that filters the list of messages on the page of troubleshooting. It takes a line as the program
// printed it, a part of such a line, or some words.
document.addEventListener("DOMContentLoaded", () => {
  const list = document.querySelector("section#find-a-message");
  if (!list) return;
  const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const items = [...list.querySelectorAll("li")].map((item) => {
    const parts = (item.querySelector("code") ?? item).textContent.split("…");
    const longest = parts.reduce((long, part) => part.length > long.length ? part : long).trim().toLowerCase();
    return { item, longest, text: item.textContent.toLowerCase(), line: new RegExp(parts.map(escaped).join(".*"), "i") };
  });
  const box = Object.assign(document.createElement("input"), {
    type: "search", id: "message", placeholder: "Paste a line, or type some words",
  });
  box.setAttribute("aria-label", "Search the messages");
  list.querySelector("p").after(box);
  box.addEventListener("input", () => {
    const query = box.value.trim().toLowerCase(), words = query.split(/\s+/);
    const ways = [
      ({ text, line }) => words.every((word) => text.includes(word)) || line.test(query),
      ({ longest }) => longest.length > 7 && query.includes(longest),
    ];
    const shown = new Set(ways.map((way) => items.filter(way)).find((found) => found.length) ?? []);
    for (const each of items) each.item.hidden = Boolean(query) && !shown.has(each);
    for (const section of [...list.querySelectorAll("section")].reverse())
      section.hidden = Boolean(query) && !section.querySelector("li:not([hidden])");
  });
});
