// The pictures of the next message: chosen, dropped or pasted; kept as data URLs.

import { byId, element } from "./dom.js";

export class Pictures {
  constructor() {
    this.urls = [];
    this.place = byId("pictures");
    byId("file")?.addEventListener("change", (event) => {
      this.add(event.target.files);
      event.target.value = "";
    });
    if (!byId("file")) return;
    const composer = byId("composer");
    composer.addEventListener("paste", (event) => this.add(event.clipboardData.files));
    addEventListener("dragover", (event) => {
      event.preventDefault();
      composer.classList.add("over");
    });
    addEventListener("dragleave", (event) => event.relatedTarget ?? composer.classList.remove("over"));
    addEventListener("drop", (event) => {
      event.preventDefault();
      composer.classList.remove("over");
      this.add(event.dataTransfer.files);
    });
  }

  async add(files) {
    for (const file of files) if (file.type.startsWith("image/")) this.put(await dataUrl(file));
  }

  put(url) {
    this.urls.push(url);
    this.show();
  }

  take() {
    const taken = this.urls;
    this.urls = [];
    this.show();
    return taken;
  }

  show() {
    this.place.replaceChildren(
      ...this.urls.map((url, at) => {
        const away = element("button", { type: "button", "aria-label": `Remove picture ${at + 1}` }, "×");
        away.addEventListener("click", () => {
          this.urls.splice(at, 1);
          this.show();
        });
        return element("li", {}, element("img", { src: url, alt: `Picture ${at + 1}` }), away);
      }),
    );
  }
}

const dataUrl = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });

export const fetched = async (address) => dataUrl(await (await fetch(address)).blob());
