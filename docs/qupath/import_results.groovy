/**
 * Import the outlines of a folder of results into the images of the open project.
 *
 * For each image NAME.svs (.ndpi, .ome.tif, …) of the project, FOLDER/NAME.geojson is read, as fseg segment
 * and fseg cohort write it. Objects of an earlier import go; those that you have drawn stay.
 *
 * QuPath 0.5 or later; run by Groovy 4.0.26 with projects, objects and slides of QuPath 0.5.1 (its core, compiled from its
 * sources), and not in its window. Automate > Script editor > Run (not "Run for project": the script goes over the project itself).
 */
import qupath.fx.dialogs.Dialogs
import qupath.fx.dialogs.FileChoosers
import qupath.lib.io.PathIO

def folder = FileChoosers.promptForDirectory("Folder of results", null)
if (folder == null)
    return
def project = getProject()
if (project == null) {
    Dialogs.showErrorMessage("fseg", "Open a project first")
    return
}

// What results of a slide are called: its name without what says the format.
def nameResults = { String image ->
    def found = (image =~ /(?i)^(.+?)(\.ome\.tiff?|\.ome\.zarr|\.[^.]+)?$/)
    found.matches() ? found.group(1) : image
}

def imported = 0
for (entry in project.getImageList()) {
    def file = new File(folder, nameResults(entry.getImageName()) + ".geojson")
    if (!file.exists()) {
        println "${entry.getImageName()}: no ${file.getName()}"
        continue
    }
    def imageData = entry.readImageData()
    def hierarchy = imageData.getHierarchy()
    // Every object of fseg has this measurement.
    def before = hierarchy.getAllObjects(false).findAll { it.getMeasurements().containsKey("Region area µm^2") }
    hierarchy.removeObjects(before, true)
    def objects = PathIO.readObjects(file.toPath())
    hierarchy.addObjects(objects)
    entry.saveImageData(imageData)
    println "${entry.getImageName()}: ${objects.size()} objects"
    imported++
}
project.syncChanges()
println "${imported} of ${project.getImageList().size()} images; open one anew to see its objects"
