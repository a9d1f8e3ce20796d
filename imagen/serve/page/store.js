// Pictures that this browser keeps: IndexedDB, bounded in number and bytes; the oldest go first.

const MOST = 200, MOST_BYTES = 96 * 2 ** 20;
let opening;

function open() {
  opening ||= new Promise((resolve, reject) => {
    const request = indexedDB.open("imagen", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("pictures", { keyPath: "id", autoIncrement: true });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opening;
}

async function within(mode, work) {
  const database = await open();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction("pictures", mode);
    const request = work(transaction.objectStore("pictures"));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

// Newest last. An empty list where the browser keeps nothing (private windows of some).
export async function all() {
  try { return await within("readonly", (store) => store.getAll()); } catch { return []; }
}

// Returns the ids of those that had to go.
export async function add(item) {
  try {
    item.id = await within("readwrite", (store) => store.add(item));
  } catch {
    item.id = item.id || -Date.now(); // shown, but not kept
    return [];
  }
  const items = await all(), gone = [];
  let bytes = items.reduce((sum, each) => sum + each.blob.size, 0);
  while (items.length > 1 && (items.length > MOST || bytes > MOST_BYTES)) {
    const oldest = items.shift();
    bytes -= oldest.blob.size;
    gone.push(oldest.id);
    await remove(oldest.id);
  }
  return gone;
}

export async function remove(id) {
  try { await within("readwrite", (store) => store.delete(id)); } catch { /* it was not kept */ }
}

export async function clear() {
  try { await within("readwrite", (store) => store.clear()); } catch { /* nothing was kept */ }
}
