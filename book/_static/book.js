// Small repairs of the theme and of the widgets; every page can be read without them.

// Font Awesome replaces <i> elements while the Play widget still holds them.
window.FontAwesomeConfig = { observeMutations: false };

const all = (selector) => document.querySelectorAll(selector);

// Font Awesome turns the icons' titles into text that the button's label does not say, sooner or later than we run.
const dropIconTitles = () => {
  all(".theme-switch-button [title]").forEach((icon) => icon.removeAttribute("title"));
  all(".theme-switch-button svg").forEach((icon) => {
    icon.querySelector("title")?.remove();
    ["role", "aria-labelledby"].forEach((name) => icon.removeAttribute(name));
    icon.setAttribute("aria-hidden", "true");
  });
};
window.addEventListener("load", dropIconTitles);

document.addEventListener("DOMContentLoaded", () => {
  dropIconTitles();
  // The sidebar is a landmark; buttons are called what they show; the bibliography is plain text.
  document.getElementById("pst-primary-sidebar")?.setAttribute("role", "complementary");
  document.getElementById("pst-primary-sidebar")?.setAttribute("aria-label", "Book");
  all(".search-button-field, summary[aria-label]").forEach((element) => element.removeAttribute("aria-label"));
  all(".citation, .citation-list").forEach((element) => element.removeAttribute("role"));
  // A slider's handle is called by the label beside it, once the widget is there.
  new MutationObserver(() =>
    all(".widget-slider .noUi-handle:not([aria-label])").forEach((handle) =>
      handle.setAttribute("aria-label", handle.closest(".widget-slider").querySelector(".widget-label").textContent),
    ),
  ).observe(document.body, { childList: true, subtree: true });
});

// The box that searches a long list; in a notebook the kernel does this (dtl.widgets).
document.addEventListener("input", ({ target }) => {
  const list = target.list && target.closest(".widget-vbox")?.querySelector("select");
  const wanted = list && target.value.toLowerCase();
  if (!wanted) return;
  const hits = [...list.options].map((option) => [option.text.toLowerCase().indexOf(wanted), option.index]);
  const [hit] = hits.filter(([at]) => at >= 0).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  if (!hit) return;
  list.selectedIndex = hit[1];
  list.dispatchEvent(new Event("change", { bubbles: true }));
});
