// Light, dark, or as the system has it; before anything is painted.
(() => {
  const NAMES = { "": "as the system has them", light: "light", dark: "dark" };
  const set = (name) => {
    if (name) document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
  };
  let chosen = localStorage.getItem("theme") ?? "";
  set(chosen);
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const tell = () => button.setAttribute("aria-label", `Colours: ${NAMES[chosen]}`);
    tell();
    button.addEventListener("click", () => {
      const all = Object.keys(NAMES);
      chosen = all[(all.indexOf(chosen) + 1) % all.length];
      localStorage.setItem("theme", chosen);
      set(chosen);
      tell();
      dispatchEvent(new Event("themechange"));
    });
  });
})();
