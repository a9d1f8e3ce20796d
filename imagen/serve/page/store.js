// Store images in this browser (IndexedDB), bounded in number and bytes; the oldest are deleted first.

const MAX_IMAGES = 200, MAX_BYTES = 96 * 2 ** 20;
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

async function transact(mode, work) {
  const database = await open();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction("pictures", mode);
    const request = work(transaction.objectStore("pictures"));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

// Return all items, newest last; none where the browser stores nothing, as in some private windows.
export async function all() {
  try { return await transact("readonly", (store) => store.getAll()); } catch { return []; }
}

// Store an item. Returns the ids of the items that were deleted to make room.
export async function add(item) {
  try {
    item.id = await transact("readwrite", (store) => store.add(item));
  } catch {
    item.id = item.id || -Date.now(); // shown, but not stored
    return [];
  }
  const items = await all(), deleted = [];
  let bytes = items.reduce((sum, each) => sum + each.blob.size, 0);
  while (items.length > 1 && (items.length > MAX_IMAGES || bytes > MAX_BYTES)) {
    const oldest = items.shift();
    bytes -= oldest.blob.size;
    deleted.push(oldest.id);
    await remove(oldest.id);
  }
  return deleted;
}

export async function remove(id) {
  try { await transact("readwrite", (store) => store.delete(id)); } catch { /* it was not stored */ }
}

export async function clear() {
  try { await transact("readwrite", (store) => store.clear()); } catch { /* nothing was stored */ }
}
